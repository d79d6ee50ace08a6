"""Draw small line charts as SVG, coloured by the page's own style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT = 320, 170
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 24  # margins around the plot
POINTS = 200  # the most that a line has


class Line(NamedTuple):
    """One line of a chart.

    Attributes:
        label: the line's name.
        colour: the number of its colour in the style sheet.
        points: its points, as (step, value).
    """

    label: str
    colour: int
    points: Sequence[tuple[float, float]]


def thin_points(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return at most `POINTS` points, each the mean of as many neighbours."""
    size = math.ceil(len(points) / POINTS)
    groups = [points[i : i + size] for i in range(0, len(points), max(1, size))]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


def axis_ticks(low: float, high: float, most: int = 4) -> list[float]:
    """Return round numbers from `low` to `high`: multiples of 1, 2 or 5 times a power of ten.

    Args:
        low: the axis's lower end.
        high: the axis's upper end.
        most: about how many intervals the axis gets.
    """
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= (high - low) / most * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def axis_limits(lines: Sequence[Line], shares: bool) -> tuple[float, float]:
    """Return the lower and the upper end of a chart's axis, with a margin around the values.

    Args:
        lines: the chart's lines.
        shares: whether the values are shares, so that the axis spans 0 to 1.
    """
    values = [y for line in lines for _, y in line.points]
    low, high = (0.0, 1.0) if shares else (min(values), max(values))
    spread = high - low if high - low > 1e-9 * abs(high) else 0.0  # less cannot be labelled
    margin = spread * 0.06 or abs(high) * 0.1 or 1.0
    return low - margin, high + margin


def render_chart(title: str, lines: Sequence[Line], shares: bool = False) -> str:
    """Return an SVG element that draws lines over the training steps.

    The style sheet's classes are `grid`, `zero`, `tick`, and `line` with `c0`, `c1`, ... for a
    line's colour.

    Args:
        title: the chart's name, for screen readers.
        lines: the lines, with at least one point in all.
        shares: whether the values are shares, so that the axis spans 0 to 1.
    """
    lines = [line._replace(points=thin_points(line.points)) for line in lines]
    low, high = axis_limits(lines, shares)
    last = max(x for line in lines for x, _ in line.points) or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        across, up = x / last, (y - low) / (high - low)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (
            HEIGHT - TOP - BOTTOM
        )

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']
    for value in axis_ticks(low, high):
        y = place(0, value)[1]
        kind = "zero" if abs(value) < 1e-12 else "grid"
        parts.append(f'<path class="{kind}" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        label = f'<text class="tick" x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">'
        parts.append(f"{label}{value if abs(value) > 1e-12 else 0:.4g}</text>")
    for value in axis_ticks(0, last):
        x = place(value, low)[0]
        label = f'<text class="tick" x="{x:.1f}" y="{HEIGHT - 8}" text-anchor="middle">'
        parts.append(f"{label}{value:.6g}</text>")
    for line in lines:
        places = [place(*point) for point in line.points]
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        if len(places) == 1:
            path += "h.1"  # a stroke so short that its round ends make a dot
        parts.append(f'<path class="line c{line.colour}" d="{path}">')
        parts.append(f"<title>{escape(line.label)}</title></path>")
    return "".join([*parts, "</svg>"])
