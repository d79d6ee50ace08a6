PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: help install quickstart test test-slow lint

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

install: .venv/installed  ## install into .venv

.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev,emoji]'
	touch $@

quickstart: install  ## forget the panda on the embedded model, evaluate, draw before and after
	$(BIN)/unlearn train concept=panda model=emoji

test test-slow: export OMP_NUM_THREADS = 1  # tiny networks: more threads only wait for each other

test: install  ## the fast tests
	$(BIN)/python -m pytest -m 'not slow'

test-slow: install  ## the slow tests
	$(BIN)/python -m pytest -m slow

lint: install  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
