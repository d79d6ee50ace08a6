"""README and docs: every command is run or composed, every link leads somewhere, prose is short."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import hydra
import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

import unlearn
from unlearn.config.compose import compose as compose_overrides
from unlearn.config.overrides import check_flags
from unlearn.exports.formats import FORMATS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted(p for p in DOCS.rglob("*.md") if DOCS / "html" not in p.parents),
]
BLOCK = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHELLS = ("sh", "bash", "console")
WORDS = 30  # of a sentence, at most
LINES = 150  # of README, at most
FLAGS = ("-m", "--multirun")  # of Hydra, where a command is composed
NOTEBOOK = DOCS / "getting-started" / "first_run.ipynb"
SMALL = [  # of a run of the notebook
    "steps=2", "batch_size=2", "method.warmup_steps=1", "data.images=4", "data.relearn_images=2",
    "data.num_inference_steps=2", "evaluation.images_per_prompt=1", "trainer.accelerator=cpu",
    "evaluation.num_inference_steps=2", "trainer.log_every_n_steps=1",
]  # fmt: skip
LISTED = ("concepts", "methods", "models", "protocols", "words")  # of `unlearn list`


# --- the package as the commands see it


def compose(overrides: Sequence[str], root: str = "train") -> DictConfig:
    """What the command line would compose; for a sweep, its first job."""
    config = compose_overrides(list(overrides), root)
    OmegaConf.to_container(config, resolve=True)
    return config


@cache
def print_help(*arguments: str) -> str:
    """What `unlearn ARGUMENTS` prints."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, _, name = project["scripts"]["unlearn"].partition(":")
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(sys, "argv", ["unlearn", *arguments])
        with contextlib.suppress(SystemExit):
            getattr(importlib.import_module(module), name)()
    return printed.getvalue()


@cache
def commands() -> list[str]:
    """The commands that `unlearn --help` lists."""
    return re.findall(r"^  ([a-z][a-z-]+) +\S", print_help("--help"), re.MULTILINE)


def split_jobs(overrides: Sequence[str]) -> list[str]:
    """The overrides of a sweep's first job, an interval as its middle."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    swept = [o for o in parsed if not o.is_interval_sweep()]
    (first, *_), *_ = BasicSweeper.split_arguments(swept, None)
    intervals = [o for o in parsed if o.is_interval_sweep()]
    return [*first, *(f"{o.get_key_element()}={o.value().start}" for o in intervals)]


# --- what each program's command line is checked by


def check_train(arguments: list[str]) -> None:
    if arguments[0] == "-sc":  # of Hydra: shell completion
        assert re.fullmatch(r"(un)?install=(bash|zsh|fish)", arguments[1])
        return
    flags = [a for a in arguments if a.startswith("-")]
    check_flags(flags)
    overrides = [a for a in arguments if not a.startswith("-")]
    if any(o.startswith("hydra/launcher=ray") for o in overrides):
        pytest.skip("the extra `ray` is missing")
    if any(o.startswith("hydra.sweeper.jobs=") for o in overrides):  # whose file names concepts
        overrides.append("concept=panda")
    compose(split_jobs(overrides) if {*flags} & {*FLAGS} else overrides)


def check_evaluate(arguments: list[str]) -> None:
    overrides = [a for a in arguments if "=" in a or a.startswith("~")]
    assert len(overrides) < len(arguments), "nothing to evaluate"
    compose(overrides, "evaluate")


def check_sample(arguments: list[str]) -> None:
    assert len(arguments) > 1, "no prompt"


def check_export(arguments: list[str]) -> None:
    check_keys("export")(arguments)
    formats = [a.partition("=")[2] for a in arguments if a.startswith("format=")]
    assert {*formats} <= {*FORMATS}


def check_config(arguments: list[str]) -> None:
    (key,) = arguments
    missing = object()
    config = compose(["concept=panda"])
    assert OmegaConf.select(config, key, default=missing) is not missing, f"no key {key}"


def check_list(arguments: list[str]) -> None:
    assert {*arguments} <= {*LISTED}


def check_keys(command: str) -> Callable[[list[str]], None]:
    """A check that the help of a command names every key that is given."""

    def check(arguments: list[str]) -> None:
        text = print_help(command, "--help")
        for argument in arguments:
            key, given, _ = argument.partition("=")
            assert not given or f"{key}=" in text, f"{command} takes no {key}"

    return check


UNLEARN: dict[str, Callable[[list[str]], None]] = {
    "train": check_train,
    "evaluate": check_evaluate,
    "sample": check_sample,
    "export": check_export,
    "config": check_config,
    "list": check_list,
}


def check_unlearn(arguments: list[str]) -> None:
    command, *rest = arguments
    assert command in commands(), f"{command} is not a command"
    if "--help" in rest:
        assert print_help(command, "--help")
    else:
        UNLEARN.get(command, check_keys(command))(rest)


def check_make(arguments: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for argument in arguments:
        name, given, _ = argument.partition("=")
        found = rf"^{name} \?=|\$\(?\(?{name}\b" if given else rf"^{name}( [a-z-]+)*:"
        assert re.search(found, makefile, re.MULTILINE), f"make knows no {argument}"


def check_python(arguments: list[str]) -> None:
    flag, name, *rest = arguments
    assert flag == "-m"
    if name == "pytest":
        assert all(Path(a).exists() for a in rest if a.startswith("tests"))
        return
    module = importlib.import_module(name)
    source = Path(str(module.__file__)).read_text(encoding="utf-8")
    if config := re.search(r'config_path="(\w+)", config_name="(\w+)"', source):
        folder = Path(str(module.__file__)).with_name(config[1])
        with hydra.initialize_config_dir(str(folder), version_base="1.3"):
            hydra.compose(config[2], rest)
    elif "argparse" in source:
        parse_only(module.main, rest)
    else:
        assert not rest, f"{name} takes no arguments"


class Parsed(Exception):
    """A command line was taken."""


def parse_only(main: Callable[[], None], arguments: list[str]) -> None:
    """Let a program take its command line, and stop it then."""
    parse = argparse.ArgumentParser.parse_args

    def stop(parser: argparse.ArgumentParser, *_: object) -> None:
        parse(parser)
        raise Parsed

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Parsed):
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        patch.setattr(sys, "argv", ["program", *arguments])
        main()


def check_pip(arguments: list[str]) -> None:
    command, package = arguments
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = re.fullmatch(r"\.(?:\[([\w,]+)\])?", package)
    assert command == "install" and extras
    assert {*(extras[1] or "lora").split(",")} <= {*project["optional-dependencies"]}


def check_source(arguments: list[str]) -> None:
    assert arguments == [".venv/bin/activate"]


def check_eval(arguments: list[str]) -> None:
    (text,) = arguments
    check_line(re.fullmatch(r"\$\((.*)\)", text)[1])  # type: ignore[index]


def check_wandb(arguments: list[str]) -> None:
    command, file = arguments
    assert command == "sweep" and (ROOT / file).is_file()


PROGRAMS: dict[str, Callable[[list[str]], None]] = {
    "unlearn": check_unlearn,
    "make": check_make,
    "python": check_python,
    "pip": check_pip,
    ".": check_source,
    "eval": check_eval,
    "wandb": check_wandb,
}


def check_line(line: str) -> None:
    """Check a command, whose variables of the environment come first."""
    words = shlex.split(line, comments=True)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    program, *arguments = words
    assert program in PROGRAMS, f"{program}: no check knows this program"
    PROGRAMS[program](arguments)


# --- the pages


class Line(NamedTuple):
    """A command and the page that it stands in."""

    page: str
    command: str


def lines_of(page: Path) -> Iterator[Line]:
    """The commands of a page's shell blocks."""
    for language, body in BLOCK.findall(page.read_text(encoding="utf-8")):
        if language in SHELLS:
            for line in body.replace("\\\n", " ").splitlines():
                if line.strip() and not line.lstrip().startswith("#"):
                    yield Line(page.relative_to(ROOT).as_posix(), line.strip())


RECIPES = "CONTRIBUTING.md"  # whose recipes' commands need their files: see test_contributing.py
COMMANDS = {  # each once
    line.command: line
    for page in reversed(PAGES)
    for line in lines_of(page)
    if (line.page != RECIPES or line.command.startswith("make"))
    and "method=tethered" not in line.command  # of a guide: see test_plugin.py
}


@pytest.mark.parametrize("line", COMMANDS.values(), ids=lambda line: f"{line.page}: {line.command}")
def test_a_command(line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT if "python" in line.command else tmp_path)  # no conf/ of one's own
    check_line(line.command)


def test_unknown_programs_and_keys_are_found() -> None:
    for wrong in (
        "curl example.org", "unlearn forget", "unlearn train concpet=panda", "make tea",
        "unlearn train concept=panda method.strenght=1", "python -m experiments.table2.run --x y",
        "unlearn export runs/panda-doco-0 format=zip", "pip install .[nothing]",
    ):  # fmt: skip
        with pytest.raises((AssertionError, ValueError, SystemExit)):
            check_line(wrong)


def prose_of(page: Path) -> list[str]:
    """The sentences of a page, without code, tables, formulas, links' targets and HTML comments."""
    text = page.read_text(encoding="utf-8")
    text = re.sub(r"^(`{3,})[^\n]*\n.*?^\1$", "\n\n", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"\$\$.*?\$\$|<!--.*?-->", " ", text, flags=re.DOTALL)
    text = re.sub(r"^ *(\||#|:::+).*$", "\n", text, flags=re.MULTILINE)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"`[^`]*`|\$[^$]*\$", "x", text)
    blocks = re.split(r"\n\s*\n|\n\s*(?:[-*:]|\d+\.) ", text)
    return [s for block in blocks for s in re.split(r"(?<=[.!?:;])[*)\"]*\s+", block) if s.strip()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_sentences_are_short(page: Path) -> None:
    long = [s for s in prose_of(page) if len(s.split()) > WORDS]
    assert not long, "\n\n".join(long)


def test_readme_is_short() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= LINES


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)\s]+)\)", BLOCK.sub("", text))
    targets += re.findall(r"^```\{(?:image|include)\} (\S+)", text, re.MULTILINE)
    for target in targets:
        path, _, _ = target.partition("#")
        if path and not re.match(r"[a-z]+:", path):
            assert (page.parent / path).exists(), f"{target} leads nowhere"


def test_every_page_is_in_a_table_of_contents() -> None:
    shown = {DOCS / "index.md"}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for body in re.findall(r"```\{toctree\}\n(.*?)```", text, re.DOTALL):
            names = [line for line in body.splitlines() if line and not line.startswith(":")]
            shown |= {(page.parent / name).with_suffix(".md") for name in names}
    pages = {page for page in PAGES if DOCS in page.parents}
    assert not pages - shown


def test_readmes_results_are_those_of_the_table() -> None:
    sys.path.insert(0, str(DOCS))
    try:
        generate = importlib.import_module("generate")
    finally:
        sys.path.remove(str(DOCS))
    columns = ("unseen target", "anchor", "retention, related", "retention, unrelated")
    kept = {row["method"]: row for row in generate.table2() if row["targets"] == "targets"}
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| .*\(`([^`]+)`\) \| (.*) \|$", text, re.MULTILINE)
    assert len(rows) == 5
    for name, cells in rows:
        expected = [generate.percent(kept[name][f"{column}: value"]) for column in columns]
        assert cells.split(" | ") == expected, name


def notebook_cells() -> list[str]:
    """The code of the notebook's cells."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def test_the_notebook_uses_the_public_api_alone() -> None:
    text = "\n".join(notebook_cells())
    imports = re.findall(r"^(?:from|import) (\S+)", text, re.MULTILINE)
    assert {*imports} == {"unlearn", "diffusers", "pathlib"}
    assert {*re.findall(r"unlearn\.(\w+)\(", text)} <= {*unlearn.__all__}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Lightning's advice on so small a run
def test_the_notebook_runs(
    random_model: Path, random_judge: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    chosen, *cells = notebook_cells()
    names: dict[str, object] = {}
    exec(chosen, names)
    base = [f"model.pretrained={random_model}", f"evaluation.judge={random_judge}"]
    names |= {"overrides": ["concept=panda", *base, *SMALL], "base": random_model}
    for cell in cells:
        exec(cell, names)
    assert (tmp_path / "runs" / "panda-doco-0" / "sample.png").exists()


@pytest.mark.slow
def test_the_pages_are_built_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("sphinx")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", str(DOCS), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "search.html").exists()
    for page in tmp_path.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.search(r'(src|href)="https?://[^"]+\.(js|css|woff2?|png|svg)"', text), (
            page.name
        )
