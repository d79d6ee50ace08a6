"""Forget 1, 2, 4 and 8 concepts together, one after another, and merged; draw the curve.

    python -m experiments.several.run [--scale emoji|smoke] [--workers 2]

A run's images.csv is kept in results/rows as soon as it ends; what is there is not run again, so a
killed call goes on where it stopped, and a run that failed is tried again by the next call.
"""

from __future__ import annotations

import argparse
import shutil
from functools import partial
from itertools import groupby
from pathlib import Path

from experiments.command import end, positive
from experiments.provenance import keep_provenance
from experiments.several.curve import render
from experiments.several.plan import CONCEPTS, Job, jobs_of, missing, overrides_of
from unlearn.config.saved import WEIGHTS_FILE, load_run_config
from unlearn.evaluation.evaluate import evaluate
from unlearn.exports.merge import MergeOptions, merge_runs
from unlearn.sweeps.jobs import train_overrides
from unlearn.sweeps.pool import PoolJob, run_jobs
from unlearn.utils.atomic import atomic_path

HERE = Path(__file__).parent


def merge_and_evaluate(parts: list[Path], run: Path) -> Path:
    """Merge finished runs into one, evaluate it, and return its run directory."""
    if not (run / WEIGHTS_FILE).exists():
        merge_runs(parts, run, MergeOptions())
    evaluate(load_run_config(run))
    return run


def pool_job(job: Job, scale: str, runs: Path) -> PoolJob[Path]:
    """A training run, or a merged model and its evaluation, for a process of its own."""
    run = runs / job.name
    if job.way == "merged":
        parts = [runs / single.name for single in job.needs]
        logs = run.with_name(f"{job.name}-log")  # what is merged goes to a folder that is not there
        return PoolJob(logs, partial(merge_and_evaluate, parts, run))
    return PoolJob(run, partial(train_overrides, overrides_of(job, scale, runs)))


def run_all(scale: str, workers: int, concepts: tuple[str, ...]) -> tuple[Path, dict[str, str]]:
    """Run what is missing; returns the folder of the results, and the errors by run."""
    runs = Path("runs") / f"several-{scale}"
    results = HERE / "results" if scale == "emoji" else runs / "results"
    rows = results / "rows"
    rows.mkdir(parents=True, exist_ok=True)
    jobs = jobs_of(concepts)
    todo = missing(jobs, rows, runs)

    def keep(name: str, run: Path) -> None:
        with atomic_path(rows / f"{name}.csv") as partial:
            shutil.copyfile(run / "images.csv", partial)
        keep_provenance(results, f"rows/{name}.csv", run)

    done = len(jobs) - len(todo)
    errors: dict[str, str] = {}
    for _, group in groupby(todo, key=lambda job: job.rank):
        ready = [job for job in group if not any(lacks(n, runs) for n in job.needs)]
        pooled = {job.name: pool_job(job, scale, runs) for job in ready}
        errors |= run_jobs(pooled, keep, workers, done)
        done += len(ready)
    return results, errors


def lacks(job: Job, runs: Path) -> bool:
    """Whether a run has no weights: it failed, and what needs it waits for the next call."""
    return not (runs / job.name / WEIGHTS_FILE).exists()


def main() -> None:
    """Run, draw, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--scale", choices=("emoji", "smoke"), default="emoji")
    parser.add_argument("--workers", type=positive, default=2, help="runs at the same time")
    options = parser.parse_args()
    concepts = CONCEPTS if options.scale == "emoji" else CONCEPTS[:2]
    results, errors = run_all(options.scale, options.workers, concepts)
    print(render(results, concepts))
    print(results)
    end(errors)


if __name__ == "__main__":
    main()
