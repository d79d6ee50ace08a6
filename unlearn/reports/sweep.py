"""Write the report of `unlearn sweep-report`: ranks, differing settings, and failed runs."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path

from unlearn.evaluation.score import SCORE_COLUMNS
from unlearn.reports.comparison import differing_keys, format_setting
from unlearn.reports.ranking import RankedRun, read_ranked_runs, run_folders
from unlearn.utils.atomic import atomic_path, write_text

RANKING_COLUMNS = [c for c in SCORE_COLUMNS if c != "retention" and not c.startswith("broken, ")]
HEADER = (
    "Ranked by Pareto rank in the unseen-target rate (low) and retention (high; on related and "
    "unrelated prompts together), then by the score: the harmonic mean of retention and of what is "
    "forgotten (images for unseen target prompts that are neither the target nor broken). Rank 1 "
    "is the Pareto front: no run is as good in one and better in the other. Each concept has ranks "
    "of its own. Rates with 95 % intervals."
)


def ranking_table(runs: Sequence[RankedRun], failed: dict[Path, str]) -> str:
    """Return the ranked runs as a Markdown table, and a list of the failed runs below it.

    Args:
        runs: the ranked runs.
        failed: the reason of each failed or unfinished run, by run directory.
    """
    keys = differing_keys(runs)
    lines = []
    if runs:
        head = ["rank", "run", *keys, *RANKING_COLUMNS, "score"]
        lines += ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for run in runs:
        settings = [format_setting(run.settings.get(key)) for key in keys]
        rates = [str(run.rates[column]) for column in RANKING_COLUMNS]
        cells = [str(run.rank), str(run.folder), *settings, *rates, f"{run.score:.3f}"]
        lines.append("| " + " | ".join(cells) + " |")
    if failed:
        lines += ["", f"{len(failed)} failed or not finished:", ""]
        lines += [f"- {folder}: {reason}" for folder, reason in failed.items()]
    return "\n".join(lines)


def write_csv(path: Path, runs: Sequence[RankedRun], failed: dict[Path, str]) -> None:
    """Write the ranked runs as a CSV file, with each rate and the ends of its interval.

    Args:
        path: the file.
        runs: the ranked runs.
        failed: the reason of each failed or unfinished run, by run directory.
    """
    keys = differing_keys(runs)
    ends = [f"{column}{end}" for column in SCORE_COLUMNS for end in ("", " low", " high")]
    with atomic_path(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["rank", "run", *keys, *ends, "score", "error"])
        writer.writeheader()
        for run in runs:
            row = {"rank": run.rank, "run": run.folder, "score": run.score}
            row |= {key: run.settings.get(key) for key in keys}
            for column, rate in run.rates.items():
                row |= {column: rate.value, f"{column} low": rate.low, f"{column} high": rate.high}
            writer.writerow(row)
        writer.writerows({"run": folder, "error": reason} for folder, reason in failed.items())


def report_sweep(folders: Sequence[Path]) -> None:
    """Write the report of all runs in some folders, and print its table.

    The report is sweep.md and sweep.csv. If a run is finished, it is also the pictures `pareto` and
    `parallel`, each as PNG, SVG and PDF. All are written into the folder that holds all the
    folders.

    Raises:
        ValueError: a folder is missing or holds no run, or matplotlib is missing.
    """
    found: list[Path] = []
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such folder")
        if not (runs_of := list(run_folders(folder))):
            raise ValueError(f"{folder}: no run directory in it")
        found += runs_of
    try:
        from unlearn.reports.sweep_plots import draw_parallel, draw_pareto
    except ModuleNotFoundError as error:
        raise ValueError(f"sweep-report: {error}; it needs the extra `plots`") from error
    runs, failed = read_ranked_runs(list(dict.fromkeys(found)))
    out = Path(os.path.commonpath(folders))
    text = ranking_table(runs, failed)
    write_text(out / "sweep.md", f"{HEADER}\n\n{text}\n")
    write_csv(out / "sweep.csv", runs, failed)
    print(text)
    files = [out / "sweep.md", out / "sweep.csv"]
    if runs:
        files += draw_pareto(out / "pareto.png", runs)
        files += draw_parallel(out / "parallel.png", runs, differing_keys(runs))
    for file in files:
        print(file)
