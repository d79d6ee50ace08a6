"""Charts of known lines: where their points lie, their ticks, and what they escape."""

from __future__ import annotations

import itertools
import math
import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unlearn.reports.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    POINTS,
    RIGHT,
    TOP,
    WIDTH,
    Line,
    axis_ticks,
    render_chart,
    thin_points,
)

SPAN = st.floats(-1e6, 1e6, allow_nan=False)


@given(SPAN, st.floats(1e-6, 1e6))
def test_ticks_are_few_round_and_inside(low: float, width: float) -> None:
    high = low + width
    if high <= low + 1e-9 * abs(low):
        return
    found = axis_ticks(low, high)
    assert 1 <= len(found) <= 5
    slack = 1e-6 * max(abs(low), abs(high), width)
    assert low - slack <= found[0] <= found[-1] <= high + slack
    for step in (b - a for a, b in itertools.pairwise(found)):
        mantissa = step / 10.0 ** math.floor(math.log10(step) + 1e-9)
        assert round(mantissa, 3) in (1, 2, 5, 10)


def test_ticks_pinned() -> None:
    assert axis_ticks(0, 1200) == [0, 500, 1000]
    assert axis_ticks(-0.1, 0.3) == pytest.approx([-0.1, 0, 0.1, 0.2, 0.3])


def test_a_long_line_is_thinned_to_means() -> None:
    points = [(float(i), float(i % 2)) for i in range(10 * POINTS)]
    few = thin_points(points)
    assert len(few) == POINTS
    assert few[0] == (4.5, 0.5)
    assert thin_points(points[:7]) == points[:7]
    assert thin_points([]) == []


def paths(svg: str) -> list[list[tuple[float, float]]]:
    """The points of each line."""
    found = []
    for path in ET.fromstring(svg).iter("path"):
        if "line" in path.get("class", ""):
            numbers = [float(n) for n in re.findall(r"-?[\d.]+", path.get("d", ""))]
            found.append(list(zip(numbers[::2], numbers[1::2], strict=False)))
    return found


def test_shares_lie_between_the_axis_ends() -> None:
    """Shares from 0 to 1 lie in the plot's height but for a margin of 6 % at both ends."""
    (line,) = paths(
        render_chart("x", [Line("a", 0, [(0, 0.0), (50, 1.0), (100, 0.5)])], shares=True)
    )
    height = HEIGHT - TOP - BOTTOM
    edge = height * 0.06 / 1.12
    expected = [
        (LEFT, HEIGHT - BOTTOM - edge),
        ((LEFT + WIDTH - RIGHT) / 2, TOP + edge),
        (WIDTH - RIGHT, TOP + height / 2),
    ]
    for point, place in zip(line, expected, strict=True):
        assert point == pytest.approx(place, abs=0.06)


def test_lines_share_axes_and_a_flat_or_single_one_is_drawn() -> None:
    svg = render_chart("x", [Line("a", 0, [(0, 2.0), (10, 2.0)]), Line("b", 3, [(5, 2.0)])])
    long, single = paths(svg)
    assert long[0][1] == long[1][1] == single[0][1]
    assert single[0][0] == pytest.approx((long[0][0] + long[1][0]) / 2, abs=0.1)
    assert 'class="line c3"' in svg
    assert paths(render_chart("x", [Line("a", 0, [(0, 0.0)])]))  # all at zero


def test_names_are_escaped() -> None:
    svg = render_chart('<b>"', [Line("<i>&", 0, [(1, 1.0)])])
    root = ET.fromstring(svg)
    assert root.get("aria-label") == '<b>"'
    assert [title.text for title in root.iter("title")] == ["<i>&"]
