"""Run Table 2: every row on every target and seed, then the table.

    python -m experiments.table2.run [--scale emoji|smoke] [--rows doco,uce] [--workers 2]

A run's images.csv is kept in results/rows as soon as it ends, and the table is made anew; what is
there is not run again, so a killed call goes on where it stopped, and a run that failed is tried
again by the next call. Delete a run's file, and its run directory, to run it with other settings.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from omegaconf import DictConfig

from experiments.command import end, positive
from experiments.table2.jobs import run_jobs
from experiments.table2.table import keep_run, render
from unlearn.config import compose

HERE = Path(__file__).parent
SMOKE = (
    "data.images=8",
    "data.relearn_images=8",
    "data.sampling_steps=2",
    "evaluation.seeds=1",
    "evaluation.sampling_steps=2",
)
SMOKE_STEPS = 6
SMOKE_NOTE = "SMOKE: a few steps and images, which show that every row runs, and nothing else."


class Job(NamedTuple):
    """One run of the table."""

    row: str
    concept: str
    seed: int
    overrides: list[str]

    @property
    def name(self) -> str:
        """Names the run directory and its kept results."""
        return f"{self.row}-{self.concept}-{self.seed}"


def read_rows(path: Path = HERE / "rows.yaml") -> dict[str, Any]:
    """The targets and the rows."""
    return dict(yaml.safe_load(path.read_text(encoding="utf-8")))


def jobs_of(plan: dict[str, Any], scale: str, rows: list[str]) -> list[Job]:
    """The runs in order: seed 0 of every row first, so that an early table has every method."""
    jobs = []
    for row in rows:
        entry = plan["rows"][row]
        targets = plan["ablation_targets" if entry.get("ablation") else "targets"]
        seeds = entry["seeds"]
        if scale == "smoke":
            targets, seeds = targets[:1], 1
        runs = [(target, seed) for target in targets for seed in range(seeds)]
        if scale == "emoji":
            further = range(entry.get("further", 0))
            runs += [(target, seed) for target in plan["further_targets"] for seed in further]
        jobs += [Job(row, target, seed, entry["overrides"]) for target, seed in runs]
    return sorted(jobs, key=lambda job: job.seed)


def config_of(job: Job, scale: str, runs: Path) -> DictConfig:
    """What `unlearn train` would compose for the run."""
    smaller = SMOKE if scale == "smoke" else ()
    own = [f"concept={job.concept}", *job.overrides, f"seed={job.seed}", *smaller]
    config = compose(["trainer.precision=auto", *own])
    config.run_dir = str(runs / job.name)
    if scale == "smoke" and config.steps:
        config.steps = SMOKE_STEPS
        sizes = {"warm_up": 2, "sampling_steps": 2, "mask_batches": 1}
        config.method.update({k: v for k, v in sizes.items() if k in config.method})
    return config


def run_all(scale: str, rows: list[str], workers: int) -> tuple[Path, dict[str, str]]:
    """Run what is missing, and write the table; returns the folder of the results, and errors."""
    plan, notes = read_rows(), [SMOKE_NOTE] if scale == "smoke" else []
    results = HERE / "results" if scale == "emoji" else Path("runs") / f"table2-{scale}" / "results"
    for folder in (results / "rows", results / "pictures"):
        folder.mkdir(parents=True, exist_ok=True)
    jobs = {job.name: job for job in jobs_of(plan, scale, rows)}
    missing = [name for name in jobs if not (results / "rows" / f"{name}.csv").exists()]
    if len(missing) < len(jobs):
        render(results, plan, *notes)

    def finish(name: str, run: Path) -> None:
        job = jobs[name]
        pictured = job.seed == 0 and job.concept in plan["ablation_targets"]
        keep_run(run, results, name, pictured)
        render(results, plan, *notes)

    runs = Path("runs") / f"table2-{scale}"
    configs = {name: config_of(jobs[name], scale, runs) for name in missing}
    return results, run_jobs(configs, finish, workers, len(jobs) - len(missing))


def main() -> None:
    """Run, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--scale", choices=("emoji", "smoke"), default="emoji")
    parser.add_argument("--rows", help="names of rows.yaml, with commas between; default: all")
    parser.add_argument("--workers", type=positive, default=2, help="runs at the same time")
    options = parser.parse_args()
    known = read_rows()["rows"]
    rows = options.rows.split(",") if options.rows else list(known)
    if unknown := [row for row in rows if row not in known]:
        parser.error(f"--rows: {unknown[0]!r} is none of {', '.join(known)}")
    results, errors = run_all(options.scale, rows, options.workers)
    if (table := results / "table2.md").exists():
        print(table.read_text(encoding="utf-8"))
    print(results)
    end(errors)


if __name__ == "__main__":
    main()
