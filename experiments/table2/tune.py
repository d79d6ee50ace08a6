"""Choose each method's settings for Table 2, on concepts that the table does not hold.

    python -m experiments.table2.tune [--methods esd,spm] [--workers 2]

The trials are listed in tuning/grid.yaml, as many for every method. Each finished one is a line of
tuning/outcome.csv, which also says what is not run again. The best trial of a method, for each kind
of concept, has the largest mean score: the harmonic mean of what is forgotten (images for unseen
target prompts that are neither the target nor broken) and what is kept (retention on related and
unrelated prompts).
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import yaml

from experiments.command import end, positive
from experiments.lines import Lines, add_lines, read_lines
from experiments.provenance import keep_provenance
from unlearn.config.compose import compose
from unlearn.config.run_files import read_images
from unlearn.evaluation.score import column_rate, forget_keep_score
from unlearn.sweeps.jobs import train_overrides
from unlearn.sweeps.pool import PoolJob, run_jobs

HERE = Path(__file__).parent / "tuning"
OUTCOME = HERE / "outcome.csv"
KEYS = ["method", "trial", "target", "kind", "overrides"]
MEASURES = ["unseen target", "anchor", "broken", "base broken", "retention"]


def read_grid() -> dict[str, Any]:
    """The targets, the overrides of all runs, and the trials of each method."""
    return dict(yaml.safe_load((HERE / "grid.yaml").read_text(encoding="utf-8")))


def trials_of(grid: dict[str, Any], methods: list[str]) -> dict[str, dict[str, str]]:
    """All trials by name, a trial's number after another so that each method gets an early one."""
    kinds = {t: compose([f"concept={t}"]).concept.kind for t in grid["targets"]}
    numbered = [(n, m, o) for m in methods for n, o in enumerate(grid["trials"][m])]
    trials = {}
    for number, method, overrides in sorted(numbered, key=lambda trial: trial[0]):
        for target, kind in kinds.items():
            row = (method, str(number), target, kind, " ".join(overrides))
            name = f"{method}-{number}-{Path(target).name}"
            trials[name] = dict(zip(KEYS, row, strict=True))
    return trials


def measures(images: list[dict[str, str]]) -> dict[str, float]:
    """The columns of a trial, from its images.csv, and its score."""
    shares = {column: column_rate(images, column).value or 0.0 for column in MEASURES}
    return {**shares, "score": forget_keep_score(images)}


Means = dict[tuple[str, str], list[tuple[str, float]]]


def mean_scores(outcome: Lines) -> Means:
    """Each trial's overrides and mean score, the best first, by method and kind of concept.

    A trial that lacks a target on which another was run does not take part.
    """
    scores: dict[tuple[str, str], dict[str, dict[str, float]]] = {}
    for row in outcome:
        trials = scores.setdefault((row["method"], row["kind"]), {})
        trials.setdefault(row["overrides"], {})[row["target"]] = float(row["score"])
    means: Means = {}
    for key, trials in scores.items():
        targets = max(map(len, trials.values()))
        whole = [(o, mean(s.values())) for o, s in trials.items() if len(s) == targets]
        means[key] = sorted(whole, key=lambda pair: -pair[1])
    return means


def keep(trial: dict[str, str], run: Path) -> None:
    """Add a finished trial to outcome.csv."""
    found = measures(read_images(run))
    add_lines(OUTCOME, [trial | {key: f"{value:.4f}" for key, value in found.items()}])
    keep_provenance(OUTCOME.parent, f"{OUTCOME.name}: {run.name}", run)


def pool_job(name: str, trial: dict[str, str], common: list[str]) -> PoolJob[Path]:
    """A trial's run, for a process of its own, with the overrides that all runs have."""
    run = Path("runs") / "tuning" / name
    own = [*common, *trial["overrides"].split(), f"run_dir={run}"]
    return PoolJob(run, partial(train_overrides, [f"concept={trial['target']}", *own]))


def main() -> None:
    """Run what is missing, and print each method's trials, the best first."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--methods", help="names of grid.yaml, with commas between; default: all")
    parser.add_argument("--workers", type=positive, default=2, help="runs at the same time")
    options = parser.parse_args()
    grid = read_grid()
    methods = options.methods.split(",") if options.methods else list(grid["trials"])
    if unknown := [m for m in methods if m not in grid["trials"]]:
        parser.error(f"--methods: {unknown[0]!r} is none of {', '.join(grid['trials'])}")
    trials = trials_of(grid, methods)
    outcome = read_lines(OUTCOME)
    finished = {(r["method"], r["trial"], r["target"], r["overrides"]) for r in outcome}
    missing = {
        name: t
        for name, t in trials.items()
        if (t["method"], t["trial"], t["target"], t["overrides"]) not in finished
    }
    jobs = {name: pool_job(name, trial, grid["common"]) for name, trial in missing.items()}
    errors = run_jobs(
        jobs, lambda name, run: keep(missing[name], run), options.workers,
        len(trials) - len(missing),
    )  # fmt: skip
    print("| method | kind | trial | score |\n|---|---|---|---|")
    for (method, kind), trials_of_kind in sorted(mean_scores(read_lines(OUTCOME)).items()):
        for overrides, value in trials_of_kind:
            print(f"| {method} | {kind} | `{overrides}` | {value:.3f} |")
    end(errors)


if __name__ == "__main__":
    main()
