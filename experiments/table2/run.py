"""Run Table 2: every row on every target and seed, then the table.

    python -m experiments.table2.run [--scale emoji|smoke] [--rows doco,uce] [--workers 2]

A run's images.csv is kept in results/rows as soon as it ends; what is there is not run again, so a
killed call goes on where it stopped, and a run that failed is tried again by the next call. The
table is made of what is kept when a call begins, and when it ends. Delete a run's file, and its
run directory, to run it with other settings.

The runs are one Hydra multirun, `unlearn train -m hydra.sweeper.jobs=runs/table2-emoji/jobs.yaml
hydra/launcher=pool`, with a callback that keeps what has ended.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from experiments.command import positive
from experiments.provenance import config_hash, recorded_configs
from experiments.table2.claims import MORE
from experiments.table2.table import keep_run, render
from unlearn.cli import train as train_command
from unlearn.config.compose import compose
from unlearn.config.parse import parse_config
from unlearn.sweeps.jobs import read_failure

HERE = Path(__file__).parent
SMOKE = (
    "data.images=8",
    "data.relearn_images=8",
    "data.num_inference_steps=2",
    "evaluation.images_per_prompt=1",
    "evaluation.num_inference_steps=2",
)
SMOKE_STEPS = 6
SMOKE_METHOD = {"warmup_steps": 2, "num_inference_steps": 2, "mask_batches": 1}
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
            for more in MORE:
                seeds = range(entry.get(more, 0))
                runs += [(target, seed) for target in plan[f"{more}_targets"] for seed in seeds]
        jobs += [Job(row, target, seed, entry["overrides"]) for target, seed in runs]
    return sorted(jobs, key=lambda job: job.seed)


def overrides_of(job: Job, scale: str, runs: Path) -> list[str]:
    """Those of `unlearn train` for the run."""
    smaller = SMOKE if scale == "smoke" else ()
    own = ["trainer.precision=auto", f"concept={job.concept}", *job.overrides, f"seed={job.seed}"]
    own += [*smaller, f"run_dir={runs / job.name}"]
    if scale == "smoke":
        config = compose(own)
        if config.steps:  # else it has other options of these names, or none
            own += [f"steps={SMOKE_STEPS}"]
            own += [f"method.{k}={v}" for k, v in SMOKE_METHOD.items() if k in config.method]
    return own


class KeepRuns(Callback):
    """Of the multirun: keeps each run that has ended.

    Args:
        scale: of the call.
    """

    def __init__(self, scale: str) -> None:
        self.scale = scale

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **given: Any) -> None:
        """Take the run's results, in the process that made it."""
        run = Path(config.run_dir)
        if read_failure(run):
            return
        _row, concept, seed = run.name.rsplit("-", 2)
        pictured = seed == "0" and concept in read_rows()["ablation_targets"]
        keep_run(run, results_of(self.scale), run.name, pictured)


def results_of(scale: str) -> Path:
    """The folder of the results."""
    return HERE / "results" if scale == "emoji" else Path("runs") / f"table2-{scale}" / "results"


def render_scale(scale: str) -> None:
    """The table of what is kept."""
    render(results_of(scale), read_rows(), *([SMOKE_NOTE] if scale == "smoke" else []))


def is_kept(job: Job, scale: str) -> bool:
    """Whether a run's results are there."""
    return (results_of(scale) / "rows" / f"{job.name}.csv").exists()


def stale_jobs(jobs: list[Job], scale: str) -> list[str]:
    """The names of kept runs whose configuration is no longer what rows.yaml composes today.

    Runs whose configuration was not recorded are left out.
    """
    recorded = recorded_configs(results_of(scale))
    stale = []
    for job in jobs:
        if kept := recorded.get(f"rows/{job.name}.csv"):
            own = overrides_of(job, scale, Path("runs") / f"table2-{scale}")
            if config_hash(parse_config(compose(own)).saved) != kept:
                stale.append(job.name)
    return stale


def run_all(scale: str, jobs: list[Job], workers: int) -> None:
    """Run what is missing, and write the table.

    Raises:
        SystemExit: some runs failed.
    """
    runs, results = Path("runs") / f"table2-{scale}", results_of(scale)
    for folder in (results / "rows", results / "pictures", runs):
        folder.mkdir(parents=True, exist_ok=True)
    missing = [job for job in jobs if not is_kept(job, scale)]
    print(f"{len(jobs) - len(missing)} of {len(jobs)} runs are kept", flush=True)
    if stale := stale_jobs([job for job in jobs if job not in missing], scale):
        print(f"stale, kept of another configuration: {', '.join(stale)}", flush=True)
    if len(missing) < len(jobs):
        render_scale(scale)
    if missing:
        sweep = runs / "jobs.yaml"
        planned = [overrides_of(job, scale, runs) for job in missing]
        sweep.write_text(yaml.safe_dump(planned, width=999), encoding="utf-8")
        keep = f"{{_target_:experiments.table2.run.KeepRuns,scale:{scale}}}"
        try:
            train_command.run(
                ["-m", f"hydra.sweeper.jobs={sweep}", "hydra/launcher=pool",
                 f"hydra.launcher.workers={workers}", f"+hydra.callbacks.keep={keep}"]
            )  # fmt: skip
        finally:
            if any(is_kept(job, scale) for job in jobs):
                render_scale(scale)
    if lost := [job.name for job in jobs if not is_kept(job, scale)]:
        raise SystemExit(f"{', '.join(lost)}: finished, but not kept: see log.txt of their runs")


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
    try:
        run_all(options.scale, jobs_of(read_rows(), options.scale, rows), options.workers)
    finally:
        if (table := results_of(options.scale) / "table2.md").exists():
            print(table.read_text(encoding="utf-8"), table.parent, sep="\n")


if __name__ == "__main__":
    main()
