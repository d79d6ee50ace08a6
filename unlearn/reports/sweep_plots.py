"""Draw the pictures of `unlearn sweep-report`: runs between two aims, and their settings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from unlearn.reports.plot_style import COLOURS, save_figure
from unlearn.reports.ranking import RankedRun

SCORES = colormaps["viridis"]
LOG = 5  # the ratio of the largest to the least number from which an axis is logarithmic
LABELS = {
    "unseen target": "unseen-target rate (left is better)",
    "retention": "retention (up is better)",
}


def draw_pareto(path: Path, runs: Sequence[RankedRun]) -> list[Path]:
    """Draw each run by its unseen-target rate and retention, and return the files.

    Each rate has its interval. A line in a colour of its own joins the runs of each concept's
    Pareto front.

    Args:
        path: of the PNG.
        runs: the ranked runs.
    """
    figure = Figure(figsize=(8, 5.5), layout="constrained")
    axes = figure.subplots()
    points = [[run.rates[column] for run in runs] for column in LABELS]
    x, y = (np.array([r.value for r in rates], float) for rates in points)
    bars = [
        np.clip([(r.value - r.low, r.high - r.value) for r in rates], 0, 1).T  # type: ignore[operator]
        for rates in points
    ]
    axes.errorbar(x, y, xerr=bars[0], yerr=bars[1], fmt="none", ecolor="0.85", elinewidth=1)
    scores = [run.score for run in runs]
    axes.scatter(x, y, c=scores, cmap=SCORES, vmin=0, vmax=1, s=45, zorder=3)
    for number, concept in enumerate(sorted({run.concept for run in runs})):
        front: dict[tuple[float, float], list[str]] = {}
        for run in runs:
            if run.rank == 1 and run.concept == concept:
                front.setdefault((run.aims[0], -run.aims[1]), []).append(run.folder.name)
        best = np.array(sorted(front)).T
        color = COLOURS[number % len(COLOURS)]
        axes.step(best[0], best[1], where="post", color=color, linewidth=1, zorder=2)
        axes.scatter(
            best[0], best[1], s=110, label=f"Pareto front, {concept}", facecolors="none",
            edgecolors=color, linewidths=1.5, zorder=4,
        )  # fmt: skip
        for place, names in front.items():
            text = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if names[3:] else "")
            axes.annotate(text, place, (7, -11), textcoords="offset points", fontsize=8, zorder=5)
    axes.set(xlabel=LABELS["unseen target"], ylabel=LABELS["retention"])
    axes.legend(loc="lower right")
    figure.colorbar(ScalarMappable(Normalize(0, 1), SCORES), ax=axes, label="score")
    return save_figure(figure, path)


class Axis:
    """One axis of the parallel coordinates, which gives each value a place from 0 to 1.

    Numbers are placed by their size or its logarithm. Other values are placed in alphabetical
    order.

    Args:
        values: all values of the axis; None has no place.
    """

    def __init__(self, values: Sequence[Any]) -> None:
        given = [value for value in values if value is not None]
        self.numeric = all(isinstance(v, int | float) and not isinstance(v, bool) for v in given)
        self.names = sorted({str(value) for value in given})
        numbers = given if self.numeric else range(len(self.names))
        self.low, self.high = float(min(numbers)), float(max(numbers))
        self.log = self.numeric and self.low > 0 and self.high > LOG * self.low

    def place(self, value: Any) -> float:
        """Return a value's place on the axis, from 0 to 1; nan for None."""
        if value is None:
            return float("nan")
        number = value if self.numeric else self.names.index(str(value))
        low, high = self.low, self.high
        if self.log:
            number, low, high = np.log([number, low, high])
        return float((number - low) / (high - low)) if high > low else 0.5

    def labels(self) -> list[tuple[float, str]]:
        """Return the axis's labels, each with its place."""
        if not self.numeric:
            return [(self.place(name), name) for name in self.names]
        spaced = np.geomspace if self.log else np.linspace
        ticks = {*spaced(self.low, self.high, 5).tolist()}
        return [(self.place(v), f"{v:.0f}" if v > 100 else f"{v:.3g}") for v in ticks]


def draw_parallel(path: Path, runs: Sequence[RankedRun], keys: Sequence[str]) -> list[Path]:
    """Draw a line for each run through its differing settings and both aims; return the files.

    The lines of the Pareto front are thick.

    Args:
        path: of the PNG.
        runs: the ranked runs.
        keys: the settings that differ between the runs.
    """
    columns = {key: [run.settings.get(key) for run in runs] for key in keys}
    columns |= {column: [run.rates[column].value for run in runs] for column in LABELS}
    axes = {key: Axis(values) for key, values in columns.items()}
    figure = Figure(figsize=(max(7, 1.7 * len(axes)), 5), layout="constrained")
    picture = figure.subplots()
    for number, run in enumerate(runs):
        places = [axis.place(columns[key][number]) for key, axis in axes.items()]
        width, alpha, z = (2.5, 1, 3) if run.rank == 1 else (1, 0.6, 2)
        picture.plot(places, color=SCORES(run.score), linewidth=width, alpha=alpha, zorder=z)
    for position, axis in enumerate(axes.values()):
        picture.axvline(position, color="black", linewidth=0.8)
        for place, label in axis.labels():
            picture.annotate(
                label, (position, place), (-4, 0), textcoords="offset points", fontsize=7,
                ha="right", va="center", bbox={"fc": "white", "ec": "none", "alpha": 0.7, "pad": 1},
                zorder=4,
            )  # fmt: skip
    names = [key if key in LABELS else key.replace(".", ".\n", 1) for key in axes]
    picture.set_xticks(range(len(axes)), names, fontsize=8)
    picture.set(yticks=[], xlim=(-0.5, len(axes) - 0.7), ylim=(-0.05, 1.05))
    picture.spines[:].set_visible(False)
    figure.colorbar(ScalarMappable(Normalize(0, 1), SCORES), ax=picture, label="score", pad=0.01)
    return save_figure(figure, path)
