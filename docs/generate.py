"""The parts of the pages that are made from the package, its conf and the kept results.

A page holds a line `<!-- generated: NAME ARGUMENT -->`; the function of that name returns the
Markdown that takes its place.
"""

from __future__ import annotations

import contextlib
import csv
import importlib
import io
import json
import re
import sys
import tomllib
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "experiments"
COLUMNS = (  # of table2.csv that the pages show
    "unseen target",
    "anchor",
    "broken, unseen target",
    "retention, related",
    "retention, unrelated",
)
KINDS = ("instance", "style", "unsafe")
EXTENSION_POINTS = (  # classes and functions that a package of one's own builds on
    "unlearn.methods.base:UnlearningModule",
    "unlearn.methods.concept_preserving:ConceptPreserving",
    "unlearn.methods.options:MethodOptions",
    "unlearn.methods.options:TrainingOptions",
    "unlearn.utils.options:option",
    "unlearn.methods.plan:TrainingPlan",
    "unlearn.concepts.concept:Concept",
    "unlearn.models.noise_schedule:NoiseSchedule",
    "unlearn.models.noise_schedule:add_noise",
    "unlearn.models.noise_schedule:noise_target",
    "unlearn.models.noise_schedule:predict_x0",
    "unlearn.methods.surgery:project",
    "unlearn.weights.importing:load_weights",
)


def fenced(text: str, language: str = "text") -> str:
    """Return a code block."""
    return f"```{language}\n{text.strip()}\n```"


def table(header: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


# --- the command line


def run_help(*arguments: str) -> str:
    """Return what the console script prints for `unlearn ARGUMENTS`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, _, name = project["scripts"]["unlearn"].partition(":")
    main = getattr(importlib.import_module(module), name)
    printed = io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["unlearn", *arguments]),
        contextlib.redirect_stdout(printed),
        contextlib.suppress(SystemExit),
    ):
        main()
    return printed.getvalue()


def commands() -> list[str]:
    """Return the names of the commands, as `unlearn --help` lists them."""
    return re.findall(r"^  ([a-z][a-z-]+) {1,}\S", run_help("--help"), re.MULTILINE)


def command_line() -> str:
    """Return the help of every command, a section each."""
    parts = [fenced(run_help("--help"))]
    parts += [f"## unlearn {name}\n\n{fenced(run_help(name, '--help'))}" for name in commands()]
    return "\n\n".join(parts)


# --- the configuration


def configuration() -> str:
    """Return the tables of every key, from the source of `unlearn config`."""
    return importlib.import_module("unlearn.cli.reference").markdown()


def options(method: str) -> str:
    """Return the table of a method's options, from the same source."""
    return importlib.import_module("unlearn.cli.reference").options_markdown(method)


def recipes(name: str) -> str:
    """Return the settings of a recipe on each model that has it, by kind of concept."""
    from unlearn.config.recipes import read_recipe

    paths = sorted((ROOT / "conf" / "recipe").glob(f"*/{name}.yaml"))
    return "\n\n".join(
        f"`conf/recipe/{path.parent.name}/{path.name}`\n\n"
        f"{recipe_table(read_recipe([path.parent.name], name))}"
        for path in paths
    )


def recipe_table(settings: dict[str, Any]) -> str:
    """Return a table with a row for each setting and a column for each kind of concept."""
    kinds = [kind for kind in KINDS if settings.get(kind)]
    keys = list(dict.fromkeys(key for kind in kinds for key in settings[kind]))
    rows = [[f"`{k}`", *(str(settings[kind].get(k, "")) for kind in kinds)] for k in keys]
    return table(["key", *kinds], rows)


# --- the Python API


def api() -> str:
    """Return the directives that document every public name of `unlearn`."""
    names = [name for name in importlib.import_module("unlearn").__all__ if name != "__version__"]
    return "\n\n".join(directive("unlearn", name) for name in names)


def extension_points() -> str:
    """Return the directives that document what packages of others build on."""
    return "\n\n".join(directive(*point.split(":")) for point in EXTENSION_POINTS)


def directive(module: str, name: str) -> str:
    """Return the autodoc directive of a name."""
    found = getattr(importlib.import_module(module), name)
    if isinstance(found, type):
        lines = [f".. autoclass:: {module}.{name}", f"   :members: {own_members(found)}"]
    elif callable(found):
        lines = [f".. autofunction:: {module}.{name}"]
    else:
        first = str(found.__doc__).partition("\n")[0]
        lines = [f".. py:data:: {module}.{name}", "", f"   {first}"]
    return "\n".join(["```{eval-rst}", *lines, "```"])


def own_members(cls: type) -> str:
    """Return the public methods and properties that a class defines itself, with docstrings."""
    members = {
        name: getattr(value, "fget", None) or getattr(value, "__func__", value)
        for name, value in vars(cls).items()
        if not name.startswith("_")
    }
    functions = {n: v for n, v in members.items() if callable(v) and not isinstance(v, type)}
    return ", ".join(name for name, value in functions.items() if value.__doc__)


# --- the kept results


@cache
def table2() -> list[dict[str, str]]:
    """Return the rows of Table 2."""
    path = RESULTS / "table2" / "results" / "table2.csv"
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def percent(value: str) -> str:
    """Return a share as a percentage with a digit."""
    return f"{100 * float(value):.1f}%"


def table2_rows(group: str) -> str:
    """Return the rows of Table 2 of a group of targets ("targets" or "fresh"), as a table."""
    rows = []
    for row in table2():
        if row["targets"] != group:
            continue
        first, *others = (percent(row[f"{column}: value"]) for column in COLUMNS)
        interval = "–".join(percent(row[f"{COLUMNS[0]}: {end}"])[:-1] for end in ("low", "high"))
        rows.append([row["method"], row["runs"] or "", first, interval, *others])
    return table(["method", "runs", COLUMNS[0], "95% interval", *COLUMNS[1:]], rows)


def several() -> str:
    """Return the two tables of the runs on several concepts."""
    path = RESULTS / "several" / "results" / "several.md"
    return path.read_text(encoding="utf-8").strip()


@cache
def bench(name: str) -> dict[str, Any]:
    """Return a kept result of the benchmarks."""
    path = RESULTS / "bench" / "results" / f"{name}.json"
    return dict(json.loads(path.read_text(encoding="utf-8")))


def bench_step(name: str) -> str:
    """Return the table of a benchmark of the step."""
    found = bench(f"step_{name}")
    rows = [
        [
            line,
            f"{own['seconds']:.2f}\u00a0s",
            f"{own['speed']:.2f}",
            f"{own['predicted_speed']:.2f}",
            f"{own['run_speed']:.2f}",
            f"{own['memory'] / 2**30:.2f}\u00a0GiB",
            f"{own['memory_share']:.2f}",
        ]
        for line, own in found["steps"].items()
    ]
    header = ["step", "time", "speed", "predicted", "whole run", "memory", "of plain's"]
    where = f"{found['device']}, {found['threads']} threads, torch {found['torch']}"
    what = f"batch {found['batch_size']}, `{found['precision']}`, {found['rounds']} rounds"
    return f"{where}; {what}.\n\n{table(header, rows)}"


def bench_drawing() -> str:
    """Return the table of the benchmarks of drawing images."""
    rows = []
    for name in ("drawing_emoji_32-true_cpu", "drawing_sd14_bf16-mixed_cuda"):
        own = bench(name)
        times = [f"{own['seconds'][way]:.1f} s" for way in ("one by one", "batches")]
        images = f"{own['images']} in batches of {own['batch_size']}"
        rows.append([own["model"], own["device"], images, *times, f"{own['speed']:.2f}"])
    return table(["model", "device", "images", "one by one", "in batches", "speed"], rows)
