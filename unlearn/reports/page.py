"""Write the page of `unlearn report`: what one run, or several side by side, forgot and kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from unlearn.concepts.prompts import SET_NAMES
from unlearn.evaluation.fidelity import SAME_PICTURE
from unlearn.evaluation.goals import GOALS, describe_outcome, goal_measures, verdict
from unlearn.evaluation.intervals import Rate
from unlearn.evaluation.run_protocol import PROTOCOL_COLUMNS as PUBLISHED
from unlearn.evaluation.run_protocol import protocol_table_rows
from unlearn.evaluation.score import KEPT_SETS
from unlearn.evaluation.table import TABLE_COLUMNS
from unlearn.reports.charts import Line, render_chart
from unlearn.reports.comparison import differing_keys, format_setting
from unlearn.reports.run_reader import FinishedRun, Tile, read_run
from unlearn.utils.atomic import write_text
from unlearn.utils.credentials import hide_secrets, is_secret
from unlearn.utils.options import option

REPORT_MARK = '<meta name="generator" content="unlearn report">'  # of the template
COLOURS = 6  # of lines, in the page's style sheet
CHARTS = {  # groups of charts, and the metrics of each by the beginnings of their names
    "Losses": ("loss/unlearn", "loss/relearn", "loss/discriminator"),
    "Discriminator": ("discriminator/",),
    "Surgery": ("surgery/",),
    "Gradient norms": ("norm/",),
    "Learning rates": ("lr/",),
    "Other": ("",),
}


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """The options of `unlearn report`."""

    out: str = option("report.html", help="the page's file")
    overwrite: bool = option(False, help="replace a file that is no report")


def report_runs(paths: Sequence[str], options: ReportOptions) -> Path:
    """Write the page of finished runs, and return its file.

    Args:
        paths: the run directories.
        options: the page's file.

    Raises:
        ValueError: there is no run, a run is not finished or damaged, or an option is not valid.
    """

    out = Path(options.out)
    check_output(out, options.overwrite)
    folders = [Path(path) for path in paths]
    names = [folder.resolve().name for folder in folders]
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ValueError(f"{', '.join(paths)}: one of them is named twice")
    if len({*names}) < len(names):
        names = list(paths)
    runs = [read_run(folder, name) for folder, name in zip(folders, names, strict=True)]
    write_text(out, hide_secrets(render_page(runs)))
    return out


def check_output(out: Path, overwrite: bool) -> None:
    """Refuse a file that a report must not replace.

    Raises:
        ValueError: the folder is missing, the path is no plain file, or the file there is no report
            and `overwrite` is not set.
    """
    if not out.parent.is_dir() or (out.exists() and not out.is_file()):
        raise ValueError(f"out={out}: a file is needed, in a folder that is there")
    if out.exists() and not overwrite:
        with out.open("rb") as file:
            if REPORT_MARK.encode() not in file.read(2000):
                raise ValueError(f"out={out}: is there already, and no report; overwrite=true")


def render_page(runs: Sequence[FinishedRun]) -> str:
    """Return the page of the runs, as HTML that needs no other file."""
    templates = Environment(
        loader=PackageLoader("unlearn", "assets"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    templates.filters |= {
        "cell": rate_pair,
        "repr": repr,
        "percent": lambda share: f"{share:.2%}".replace(".00%", "%"),
        "percent0": lambda share: f"{share:.0%}",
    }
    shown = image_gallery(runs)
    images = [len(figure["images"]) for figures in shown.values() for figure in figures]
    return templates.get_template("report.html.j2").render(
        runs=runs,
        colours=COLOURS,
        bars=GOALS,
        same_picture=SAME_PICTURE,
        scores={run.name: goal_scores(run.result) for run in runs},
        verdicts={run.name: describe_outcome(run.result) for run in runs},
        rates=rate_tables(runs),
        gallery=shown,
        widest=max(images, default=2),
        charts=metric_charts(runs),
        published=PUBLISHED,
        table_rows=protocol_table_rows,
        configs={
            run.name: yaml.safe_dump(mask_secrets(run.config), sort_keys=False) for run in runs
        },
        differences=setting_differences(runs),
        facts=list(dict.fromkeys(chain.from_iterable(run.environment for run in runs))),
    )


def goal_scores(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a run's measures and their verdicts; empty for a run without a judge."""
    if not result["sets"]:
        return []
    return [
        {"measure": measure, "verdict": measure and verdict(measure, bar, more)}
        for measure, (_, bar, more) in zip(goal_measures(result), GOALS, strict=True)
    ]


def rate_pair(pair: dict[str, Any]) -> dict[str, Any]:
    """Return a pair of rates, base and unlearned, as objects; empty if nothing was measured."""
    sides = {side: Rate(**pair[side]) for side in ("base", "unlearned")}
    return sides if sides["base"].n else {}


def has_column(row: dict[str, Any], column: str) -> bool:
    """Return whether a table shows a column of a set's rates.

    It does not if nothing was measured. Nor does it if "object" or "style" repeats another column.
    """
    own = row.get(column)
    repeats = column in ("object", "style") and own in (row["right"], row.get("anchor"))
    return bool(own and rate_pair(own)) and not repeats


def rate_tables(runs: Sequence[FinishedRun]) -> list[dict[str, Any]]:
    """Return two tables of rates: of what is to be forgotten, and of what is to be kept.

    Each table holds its columns, and the lines of each set. A line holds a label, the number of the
    run's colour, and the rates by column.
    """
    tables = []
    for title, names in (("To be forgotten", SET_NAMES[:2]), ("To be kept", SET_NAMES[2:])):
        sets: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        for number, run in enumerate(runs):
            parts = {run.name: run.result, **{
                f"{run.name}: {name}{', before' if own['earlier'] else ''}": own
                for name, own in run.result.get("concepts", {}).items()
            }}  # fmt: skip
            for label, result in parts.items():
                for name in names:
                    if row := result["sets"].get(name):
                        sets[name].append({"label": label, "colour": number, "rates": row})
        lines = [line for own in sets.values() for line in own]
        columns = [c for c in TABLE_COLUMNS if any(has_column(v["rates"], c) for v in lines)]
        grouped = len(lines) > len(names)
        facts = {"title": title, "columns": columns, "grouped": grouped, "empty": not lines}
        tables.append({**facts, "sets": sets})
    return tables


def image_gallery(runs: Sequence[FinishedRun]) -> dict[str, list[dict[str, Any]]]:
    """Return the figures of each set: a prompt, the base model's image, and each run's image."""
    shown: dict[tuple[str, str, str, str], list[tuple[FinishedRun, Tile]]] = {}
    for run in runs:
        for tile in run.tiles:
            key = tile.part, tile.prompt, tile.seed, tile.base
            shown.setdefault(key, []).append((run, tile))
    by_set: dict[str, list[dict[str, Any]]] = {name: [] for name in SET_NAMES}
    for (part, prompt, seed, base), drawn in shown.items():
        images: list[tuple[str, int | None, str]] = [("base", None, base)]
        kept = part in KEPT_SETS
        for run, tile in drawn:
            alone = len(runs) == 1
            label, number = ("unlearned", None) if alone else (run.name, runs.index(run))
            moved = f", moved {float(tile.moved):.2f}" * kept
            images.append((f"{label}{moved}", number, tile.unlearned))
        unsafe = any(run.unsafe for run, _ in drawn)
        figure = {"prompt": prompt, "seed": seed, "images": images, "unsafe": unsafe}
        by_set[part].append(figure)
    return {name: figures for name, figures in by_set.items() if figures}


def metric_charts(runs: Sequence[FinishedRun]) -> dict[str, dict[str, Markup]]:
    """Return the charts of the runs' metrics.csv, by group and metric; each run is a line."""
    names = list(dict.fromkeys(chain.from_iterable(run.metrics for run in runs)))
    groups: dict[str, dict[str, Markup]] = {}
    for group, beginnings in CHARTS.items():
        for name in [n for n in names if n.startswith(beginnings)]:
            names.remove(name)
            lines = [
                Line(run.name, number % COLOURS, run.metrics[name])
                for number, run in enumerate(runs)
                if name in run.metrics
            ]
            shares = name.endswith("accuracy") or name == "surgery/conflicting"
            groups.setdefault(group, {})[name] = Markup(render_chart(name, lines, shares))
    return groups


def mask_secrets(config: Any, key: str = "") -> Any:
    """Return a configuration with "(hidden)" in place of secret values.

    The name of a key tells whether its value is secret. Booleans and null are never hidden.

    Args:
        config: a configuration, or a part of one.
        key: the key of that part.
    """
    if isinstance(config, dict):
        return {k: mask_secrets(v, key if is_secret(key) else k) for k, v in config.items()}
    if isinstance(config, list):
        return [mask_secrets(value, key) for value in config]
    hidden = is_secret(key) and config is not None and not isinstance(config, bool)
    return "(hidden)" if hidden else config


def setting_differences(runs: Sequence[FinishedRun]) -> dict[str, list[str]]:
    """Return the keys whose values differ between the runs, with the value of each run."""
    return {
        key: [format_setting(mask_secrets(run.settings.get(key), key)) for run in runs]
        for key in differing_keys(runs)
    }
