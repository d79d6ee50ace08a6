"""Forget 1, 2, 4 and 8 concepts together, one after another, and merged; draw the curve.

    python -m experiments.several.run [--scale emoji|smoke] [--workers 2]

A run's images.csv is kept in results/rows as soon as it ends; what is there is not run again, so a
killed call goes on where it stopped, and a run that failed is tried again by the next call.
"""

from __future__ import annotations

import argparse
import shutil
from itertools import groupby
from pathlib import Path

from omegaconf import DictConfig

from experiments.command import end, positive
from experiments.several.curve import render
from experiments.several.plan import CONCEPTS, Job, config_of, jobs_of, missing
from unlearn.config.saved import load_run
from unlearn.evaluation.evaluate import evaluate
from unlearn.exports.merge import WEIGHTS_FILE, MergeOptions, merge_runs
from unlearn.sweeps.pool import run_jobs
from unlearn.training.run import train
from unlearn.utils.atomic import atomic_path

HERE = Path(__file__).parent


def perform(config: DictConfig) -> Path:
    """A training run, or a merged model and its evaluation; returns the run directory."""
    if "merged" not in config:
        return train(config)
    run = Path(config.run_dir)
    if not (run / WEIGHTS_FILE).exists():
        merge_runs([Path(folder) for folder in config.merged], run, MergeOptions())
    evaluate(*load_run(str(run)))
    return run


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

    done = len(jobs) - len(todo)
    errors: dict[str, str] = {}
    for _, group in groupby(todo, key=lambda job: job.rank):
        ready = [job for job in group if not any(lacks(n, runs) for n in job.needs)]
        configs = {job.name: config_of(job, scale, runs) for job in ready}
        errors |= run_jobs(configs, keep, workers, done, job=perform)
        done += len(ready)
    return results, errors


def lacks(job: Job, runs: Path) -> bool:
    """Whether a run has no weights: it failed, and what needs it waits for the next call."""
    return not (runs / job.name / "unlearned.safetensors").exists()


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
