PYTHON ?= python3.11
BIN := .venv/bin
comma := ,

.PHONY: help install quickstart shown-concepts reproduce-table2 bench test test-slow test-lower lint \
  docs docker

help:  ## list the targets
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 20

install: .venv/installed  ## install into .venv

.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev,emoji]'
	touch $@

quickstart: install  ## forget the panda on the embedded model, evaluate, draw before and after
	$(BIN)/unlearn train concept=panda model=emoji

SHOWN := panda,rabbit,strawberry,rocket,penguin,contrast,noto,twemoji,emojione,fluent,unsafe

shown-concepts: install  ## the quickstart for every shown concept, and a summary of all of them
	$(BIN)/unlearn train -m concept=$(SHOWN) hydra/launcher=pool
	$(BIN)/python -m experiments.summary $(foreach c,$(subst $(comma), ,$(SHOWN)),runs/$(c)-doco-0)

SCALE ?= emoji

reproduce-table2: install  ## every method on every target, and the table (SCALE=smoke|sd14, ARGS=...)
ifeq ($(SCALE),sd14)
	$(BIN)/python -m experiments.table2.sd14 $(DEVICES:%=--devices %) $(LIMIT:%=--limit %) $(ARGS)
else
	$(if $(DEVICES)$(LIMIT),$(error DEVICES and LIMIT are for SCALE=sd14))
	$(BIN)/python -m experiments.table2.run --scale $(SCALE) $(ARGS)
endif

bench: install  ## time the step, the drawing of images, and two ranks, each against the plain way
	$(BIN)/python -m experiments.bench.step
	$(BIN)/python -m experiments.bench.drawing
	$(BIN)/python -m experiments.bench.ranks

test test-slow test-lower: export OMP_NUM_THREADS = 1  # tiny networks: more threads only wait for each other

# tests/integration, whose files are the long ones, comes first
PYTEST := python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: install  ## the fast tests
	$(BIN)/$(PYTEST) -m 'not slow'

test-slow: install  ## the slow tests
	$(BIN)/$(PYTEST) -m slow

test-lower: install  ## the fast tests with the oldest dependencies allowed, in .venv-lower
	$(BIN)/uv venv -q --clear -p $(BIN)/python .venv-lower
	$(BIN)/uv pip install -q -p .venv-lower --resolution lowest-direct -e '.[dev,emoji]'
	.venv-lower/bin/$(PYTEST) -m 'not slow' -W ignore  # old beside new

docs: install  ## the documentation, in docs/html
	$(BIN)/python -m sphinx -W --keep-going -q docs docs/html

lint: install  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docker:  ## build the image `unlearn` (ARGS='--build-arg EXTRAS=plots,demo')
	docker build -t unlearn $(ARGS) .
