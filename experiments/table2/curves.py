"""Forgetting against what is kept, along training: methods compared at matched forgetting.

    python -m experiments.table2.curves [--workers 2]

The rows `curves` of rows.yaml on the ablation targets, one training seed, each with its weights
kept five times on the way and evaluated. Finished runs are lines of results/curves.csv and are not
run again; results/curves.png is drawn from them.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from experiments.command import end, positive
from experiments.lines import Lines, add_lines, read_lines
from experiments.provenance import keep_provenance
from experiments.table2.run import HERE, Job, overrides_of, read_rows
from experiments.table2.tune import measures
from unlearn.config.compose import compose
from unlearn.config.run_files import read_images
from unlearn.config.saved import load_run_config
from unlearn.evaluation.evaluate import evaluate
from unlearn.sweeps.jobs import train_overrides
from unlearn.sweeps.pool import PoolJob, run_jobs

POINTS = 5  # of a run
CURVES = HERE / "results" / "curves.csv"


def train_and_evaluate(overrides: list[str]) -> Path:
    """A run, and the evaluation of the weights that it kept; returns its directory."""
    run = train_overrides(overrides)
    for folder in kept(run):
        evaluate(load_run_config(folder))
    return run


def pool_job(job: Job) -> PoolJob[Path]:
    """A run that keeps its weights `POINTS` times, for a process of its own."""
    runs = Path("runs") / "table2-curves"
    overrides = overrides_of(job, "emoji", runs)
    overrides.append(f"keep_every={compose(overrides).steps // POINTS}")
    return PoolJob(runs / job.name, partial(train_and_evaluate, overrides))


def kept(run: Path) -> list[Path]:
    """The run directories of the weights that a run kept, in order."""
    return sorted((run / "steps").iterdir())


def points_of(job: Job, run: Path) -> Lines:
    """A run's points, from the images of each kept step."""
    points = []
    for folder in kept(run):
        found = measures(read_images(folder))
        shares = {key: f"{value:.4f}" for key, value in found.items()}
        points.append(
            {"row": job.row, "target": job.concept, "step": str(int(folder.name))} | shares
        )
    return points


def keep_points(job: Job, run: Path) -> None:
    """Add a finished run's points to curves.csv."""
    add_lines(CURVES, points_of(job, run))
    keep_provenance(CURVES.parent, f"{CURVES.name}: {job.name}", run)


def means(points: Lines, row: str) -> list[tuple[float, float]]:
    """Unseen-target rate and retention of a row at each step, means over the targets."""
    steps: dict[int, list[tuple[float, float]]] = {}
    order: dict[str, int] = {}
    for point in points:
        if point["row"] == row:
            number = order[point["target"]] = order.get(point["target"], -1) + 1
            pair = float(point["unseen target"]), float(point["retention"])
            steps.setdefault(number, []).append(pair)
    return [
        (sum(x for x, _ in pairs) / len(pairs), sum(y for _, y in pairs) / len(pairs))
        for pairs in steps.values()
    ]


def draw(points: Lines, plan: dict[str, Any]) -> None:
    """curves.png: a panel a row, from few steps (small marks) to all; the others' lines in grey."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    from unlearn.reports.plot_style import FAINT, HIGHLIGHT, save_figure

    lines = {row: line for row in plan["curves"] if (line := means(points, row))}
    figure = Figure(figsize=(8, 6), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True, sharey=True).flat
    for axes, (row, line) in zip(panels, lines.items(), strict=False):
        for other in lines.values():
            axes.plot(*zip(*other, strict=True), color=FAINT, zorder=1)
        x, y = zip(*line, strict=True)
        axes.plot(x, y, color=HIGHLIGHT, zorder=2)
        axes.scatter(x, y, [15 + 20 * i for i in range(len(x))], color=HIGHLIGHT, zorder=3)
        axes.set_title(plan["rows"][row]["label"], fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1))
    figure.supxlabel("unseen-target rate (left is better)", fontsize=10)
    figure.supylabel("retention, related and unrelated", fontsize=10)
    save_figure(figure, CURVES)


def main() -> None:
    """Run what is missing, draw, and print the points."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workers", type=positive, default=2, help="runs at the same time")
    options = parser.parse_args()
    plan = read_rows()
    targets = plan["ablation_targets"]
    rows = [(row, plan["rows"][row]["overrides"]) for row in plan["curves"]]
    jobs = {j.name: j for row, own in rows for t in targets for j in [Job(row, t, 0, own)]}
    done = {(p["row"], p["target"]) for p in read_lines(CURVES)}
    missing = {n: pool_job(j) for n, j in jobs.items() if (j.row, j.concept) not in done}
    CURVES.parent.mkdir(exist_ok=True)
    errors = run_jobs(
        missing, lambda name, run: keep_points(jobs[name], run), options.workers,
        len(jobs) - len(missing),
    )  # fmt: skip
    points = read_lines(CURVES)
    draw(points, plan)
    print("| method | target | step | unseen target | retention |\n|---|---|---|---|---|")
    for p in points:
        shares = f"{float(p['unseen target']):.1%} | {float(p['retention']):.1%}"
        print(f"| {plan['rows'][p['row']]['label']} | {p['target']} | {p['step']} | {shares} |")
    end(errors)


if __name__ == "__main__":
    main()
