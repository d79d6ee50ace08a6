"""`unlearn sweep-report`: runs ranked, what differs between them, and which failed."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from unlearn.evaluation.metrics import Rate
from unlearn.evaluation.score import COLUMNS, column_rate, read_images, score
from unlearn.files import whole, write_text
from unlearn.resume import ERROR, FREE, config_of_run, flat
from unlearn.sweep import failure_of

NAMED = {"concept": "name", "anchor": "name", "model": "pretrained"}  # shown by this key alone
SHOWN = [c for c in COLUMNS if c != "retention" and not c.startswith("broken, ")]
HEADER = (
    "Ranked by Pareto rank in the unseen-target rate (low) and retention (high; on related and "
    "unrelated prompts together), then by the score: the harmonic mean of retention and of what is "
    "forgotten (images for unseen target prompts that are neither the target nor broken). Rank 1 "
    "is the Pareto front: no run is as good in one and better in the other. Rates with 95 % "
    "intervals."
)


class Run(NamedTuple):
    """A finished run.

    Attributes:
        folder: its directory.
        settings: its config, by dotted keys.
        rates: of each of `COLUMNS`.
        score: see `HEADER`.
        rank: its Pareto rank among the others, from 1.
    """

    folder: Path
    settings: dict[str, Any]
    rates: dict[str, Rate]
    score: float
    rank: int = 0

    @property
    def aims(self) -> tuple[float, float]:
        """Unseen-target rate and retention, both to be low."""
        unseen, kept = (self.rates[column].value for column in ("unseen target", "retention"))
        assert unseen is not None and kept is not None  # `score` needs them
        return unseen, -kept


def run_folders(folder: Path) -> Iterator[Path]:
    """The run directories in a folder, or the folder itself; none inside of another."""
    if any((folder / name).exists() for name in ("config.yaml", ERROR)):
        yield folder
        return
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            yield from run_folders(path)


def settings_of(config: dict[str, Any]) -> dict[str, Any]:
    """What of a config can make a difference, by dotted keys."""
    kept = {key: value for key, value in config.items() if key not in FREE}
    for key, name in NAMED.items():
        if key in kept:
            kept[key] = {name: kept[key].get(name)}
    return dict(flat(kept))


def read_runs(folders: Sequence[Path]) -> tuple[list[Run], dict[Path, str]]:
    """The finished runs, ranked, and why the last job in a folder failed or nothing is to rank."""
    runs, failed = [], {}
    for folder in folders:
        if reason := failure_of(folder):
            failed[folder] = reason
        if not (folder / "result.json").exists():  # else the job failed beside a finished run
            continue
        try:
            images = read_images(folder)
            rates = {column: column_rate(images, column) for column in COLUMNS}
            settings = settings_of(config_of_run(folder))
            runs.append(Run(folder, settings, rates, score(images)))
        except ValueError as error:
            failed[folder] = str(error)
    return ranked(runs), failed


def ranked(runs: Sequence[Run]) -> list[Run]:
    """The runs with their ranks, the best first."""
    left, done = list(runs), list[Run]()
    while left:
        aims = [run.aims for run in left]
        front = [
            run
            for run in left
            if not any(o[0] <= run.aims[0] and o[1] <= run.aims[1] and o != run.aims for o in aims)
        ]
        rank = done[-1].rank + 1 if done else 1
        done += [r._replace(rank=rank) for r in sorted(front, key=lambda r: -r.score)]
        left = [run for run in left if run not in front]
    return done


class HasSettings(Protocol):
    """What can be compared: `settings_of` a config."""

    @property
    def settings(self) -> dict[str, Any]:
        """What is set, by dotted key."""


def differing(runs: Sequence[HasSettings]) -> list[str]:
    """The keys whose values differ between the runs that have them."""
    values: dict[str, set[str]] = {}
    for run in runs:
        for key, value in run.settings.items():
            values.setdefault(key, set()).add(repr(value))
    return [key for key, different in values.items() if len(different) > 1]


def shown(value: Any) -> str:
    """A setting as a cell."""
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


def table(runs: Sequence[Run], failed: dict[Path, str]) -> str:
    """The ranked runs as a Markdown table, and below it those that are not finished."""
    keys = differing(runs)
    lines = []
    if runs:
        head = ["rank", "run", *keys, *SHOWN, "score"]
        lines += ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for run in runs:
        settings = [shown(run.settings.get(key)) for key in keys]
        rates = [str(run.rates[column]) for column in SHOWN]
        cells = [str(run.rank), str(run.folder), *settings, *rates, f"{run.score:.3f}"]
        lines.append("| " + " | ".join(cells) + " |")
    if failed:
        lines += ["", f"{len(failed)} failed or not finished:", ""]
        lines += [f"- {folder}: {reason}" for folder, reason in failed.items()]
    return "\n".join(lines)


def write_csv(path: Path, runs: Sequence[Run], failed: dict[Path, str]) -> None:
    """The table in numbers: each rate, and the ends of its interval."""
    keys = differing(runs)
    ends = [f"{column}{end}" for column in COLUMNS for end in ("", " low", " high")]
    with whole(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["rank", "run", *keys, *ends, "score", "error"])
        writer.writeheader()
        for run in runs:
            row = {"rank": run.rank, "run": run.folder, "score": run.score}
            row |= {key: run.settings.get(key) for key in keys}
            for column, rate in run.rates.items():
                row |= {column: rate.value, f"{column} low": rate.low, f"{column} high": rate.high}
            writer.writerow(row)
        writer.writerows({"run": folder, "error": reason} for folder, reason in failed.items())


def report(folders: Sequence[Path]) -> None:
    """Report all runs in the folders, into the folder that holds these, and print the table.

    That is sweep.md, sweep.csv, and where there are finished runs pareto.png and parallel.png.

    Raises:
        ValueError: there is no such folder, no run in one, or matplotlib is missing.
    """
    found: list[Path] = []
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such folder")
        if not (runs_of := list(run_folders(folder))):
            raise ValueError(f"{folder}: no run directory in it")
        found += runs_of
    try:
        from unlearn.sweep_plots import draw_parallel, draw_pareto
    except ModuleNotFoundError as error:
        raise ValueError(f"sweep-report: {error}; it needs the extra `plots`") from error
    runs, failed = read_runs(list(dict.fromkeys(found)))
    out = Path(os.path.commonpath(folders))
    text = table(runs, failed)
    write_text(out / "sweep.md", f"{HEADER}\n\n{text}\n")
    write_csv(out / "sweep.csv", runs, failed)
    print(text)
    files = ["sweep.md", "sweep.csv"]
    if runs:
        draw_pareto(out / "pareto.png", runs)
        draw_parallel(out / "parallel.png", runs, differing(runs))
        files += ["pareto.png", "parallel.png"]
    for name in files:
        print(out / name)
