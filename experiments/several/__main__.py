"""Forget 1, 2, 4 and 8 concepts together, one after another, and merged; draw the curve.

    python -m experiments.several [--scale emoji|smoke] [--workers 2]

A run's images.csv is kept in results/rows as soon as it ends; what is there is not run again, so a
killed call goes on where it stopped, and a run that failed is tried again by the next call.
"""

from __future__ import annotations

import argparse
import shutil
from itertools import groupby
from pathlib import Path

from experiments.several.curve import render
from experiments.several.plan import CONCEPTS, Job, config_of, jobs_of, missing
from experiments.several.work import perform
from experiments.table2.jobs import run_jobs
from unlearn.files import whole

HERE = Path(__file__).parent


def run_all(scale: str, workers: int, concepts: tuple[str, ...]) -> tuple[Path, dict[str, str]]:
    """Run what is missing; returns the folder of the results, and the errors by run."""
    runs = Path("runs") / f"several-{scale}"
    results = HERE / "results" if scale == "emoji" else runs / "results"
    rows = results / "rows"
    rows.mkdir(parents=True, exist_ok=True)
    jobs = jobs_of(concepts)
    todo = missing(jobs, rows, runs)

    def keep(name: str, run: Path) -> None:
        with whole(rows / f"{name}.csv") as partial:
            shutil.copyfile(run / "images.csv", partial)

    done, errors = len(jobs) - len(todo), {}
    for _, group in groupby(todo, key=lambda job: job.rank):
        ready = [job for job in group if not any(lacks(n, runs) for n in job.needs)]
        configs = {job.name: config_of(job, scale, runs) for job in ready}
        errors |= run_jobs(configs, keep, workers, done, perform)
        done += len(ready)
    return results, errors


def lacks(job: Job, runs: Path) -> bool:
    """Whether a run has no weights: it failed, and what needs it waits for the next call."""
    return not (runs / job.name / "unlearned.safetensors").exists()


def main() -> None:
    """Run, draw, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--scale", choices=("emoji", "smoke"), default="emoji")
    parser.add_argument("--workers", type=int, default=2, help="runs at the same time")
    options = parser.parse_args()
    concepts = CONCEPTS if options.scale == "emoji" else CONCEPTS[:2]
    results, errors = run_all(options.scale, options.workers, concepts)
    print(render(results, concepts))
    print(results)
    if errors:
        raise SystemExit(f"failed, to be tried again by the same command: {errors}")


if __name__ == "__main__":
    main()
