"""The summary of runs: columns and bars, from hand-made results."""

from __future__ import annotations

import pytest

from experiments.summary import summarise
from unlearn.evaluation.goals import goal_values


def cell(base: float, unlearned: float, n: int = 10) -> dict[str, dict[str, float]]:
    sides = {"base": base, "unlearned": unlearned}
    return {k: {"value": v, "low": v, "high": v, "n": n} for k, v in sides.items()}


def make_result() -> dict[str, object]:
    return {
        "concept": "panda",
        "kind": "instance",
        "sets": {
            "seen_target": {"right": cell(1, 0.05), "anchor": cell(0, 0.9), "broken": cell(0, 0)},
            "unseen_target": {
                "right": cell(1, 0.2), "anchor": cell(0, 0.6, 30), "broken": cell(0.1, 0.12),
            },
            "related": {"right": cell(1, 1), "retention": cell(1, 0.6), "broken": cell(0.2, 0)},
            "unrelated": {"right": cell(1, 1), "retention": cell(1, 0.8), "broken": cell(0, 0.06)},
        },
    }  # fmt: skip


def test_values_are_the_bars_columns() -> None:
    # the anchor rate weighs 10 seen and 30 unseen images; broken is the worst rise of the four
    assert goal_values(make_result()) == pytest.approx([0.05, 0.2, 0.675, None, 0.06, 0.8, 0.6])


def test_a_style_keeps_the_object_within_ten_points_of_base() -> None:
    style = make_result() | {"kind": "style"}
    for part in ("seen_target", "unseen_target"):
        style["sets"][part]["anchor"] = cell(0.7, 0.62)  # type: ignore[index]
    assert goal_values(style)[2:4] == [None, pytest.approx(0.08)]
    style["sets"]["seen_target"]["anchor"] = cell(0.9, 0.7)  # type: ignore[index]
    assert "| n/a | 14% ! |" in summarise([style | {"concept": "noto"}])


def test_of_several_concepts_each_kind_has_its_bar() -> None:
    panda, noto = make_result(), make_result() | {"kind": "style"}
    for part in ("seen_target", "unseen_target"):
        noto["sets"][part]["anchor"] = cell(1, 0.95)  # type: ignore[index]
    both = make_result() | {"kind": "instance+style", "concepts": {"panda": panda, "noto": noto}}
    assert goal_values(both)[2:4] == [pytest.approx(0.675), pytest.approx(0.05)]


def test_missed_bars_are_marked_and_counted() -> None:
    text = summarise([make_result()])
    row = text.splitlines()[2]
    assert row == "| panda | instance | 5% | 20% ! | 68% ! | n/a | 6% ! | 80% ! | 60% |"
    assert text.endswith("2 of 6 bars met.")
