"""What a run's rates say in words, from hand-made results on both sides of the bars."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unlearn.evaluation.goals import Measure, describe_outcome, difference, goal_values, verdict
from unlearn.evaluation.intervals import wilson_rate

NOTHING = {side: wilson_rate(0, 0)._asdict() for side in ("base", "unlearned")}
MANY = 4000  # images, of which an interval is two points wide at most


def pair(base: float, unlearned: float, n: int = MANY) -> dict[str, Any]:
    """The rates of two shares of n images."""
    return {
        "base": wilson_rate(round(base * n), n)._asdict(),
        "unlearned": wilson_rate(round(unlearned * n), n)._asdict(),
    }


def make_result(**changes: Any) -> dict[str, Any]:
    """A result whose every rate is well on the good side of its bar; `changes` by set__metric."""
    sets = {
        "seen_target": {"right": pair(1, 0), "anchor": pair(0, 0.8), "broken": pair(0, 0)},
        "unseen_target": {"right": pair(1, 0.1), "anchor": pair(0, 0.8), "broken": pair(0.1, 0)},
        "related": {"right": pair(1, 0.7), "retention": pair(1, 0.7), "broken": pair(0, 0)},
        "unrelated": {"right": pair(1, 0.9), "retention": pair(1, 0.9), "broken": pair(0, 0)},
    }
    result = {"kind": "instance", "sets": copy.deepcopy(sets)}
    for key, value in changes.items():
        part, _, metric = key.partition("__")
        result["sets"][part][metric] = value  # type: ignore[index]
    return result


@pytest.mark.parametrize(
    ("changes", "head", "missed", "undecided"),
    [
        ({}, "Forgotten, and the rest kept", [], []),
        ({"seen_target__right": pair(1, 0.1)}, "Not forgotten", ["seen target"], []),
        ({"unseen_target__right": pair(1, 0.2)}, "Not forgotten", ["unseen target"], []),
        ({"related__retention": pair(1, 0.5)}, "Forgotten, with a cost",
         ["retention, related"], []),
        (
            {
                "unrelated__broken": pair(0, 0.1),
                **{f"{part}_target__anchor": pair(0, 0.6) for part in ("seen", "unseen")},
            },
            "Forgotten, with a cost",
            ["anchor", "broken above base"],
            [],
        ),
        ({"unseen_target__right": NOTHING}, "No target prompt counts: the base model obeys none",
         [], []),
        ({"seen_target__right": pair(1, 1 / 16, 16)},
         "Forgotten; too few images to decide 1 of the goals", [], ["seen target"]),
        ({"unseen_target__right": pair(1, 0, 10)},
         "Undecided: too few images to tell whether the target is forgotten", [],
         ["unseen target"]),
        ({"unseen_target__right": pair(1, 0, 10), "seen_target__right": pair(1, 0.5)},
         "Not forgotten", ["seen target"], ["unseen target"]),
    ],
)  # fmt: skip
def test_an_outcome(
    changes: dict[str, Any], head: str, missed: list[str], undecided: list[str]
) -> None:
    said = describe_outcome(make_result(**changes))
    assert said["head"] == head
    for key, names in (("missed", missed), ("undecided", undecided)):
        assert [text.partition(" ")[0] for text in said[key]] == [
            n.partition(" ")[0] for n in names
        ]
        assert all(text.startswith(name) for text, name in zip(said[key], names, strict=True))
    good = head == "Forgotten, and the rest kept"
    assert said["verdict"] == ("not met" if missed else "met" if good else "undecided")


def test_a_goal_is_said_with_its_interval_and_its_bar() -> None:
    said = describe_outcome(make_result(seen_target__right=pair(1, 1 / 16, 16)))
    assert said["undecided"] == ["seen target 6% [1%, 28%] (bar: ≤ 5%)"]


@pytest.mark.parametrize(
    ("low", "high", "bar", "more", "expected"),
    [
        (0.0, 0.05, 0.05, False, "met"),
        (0.0, 0.06, 0.05, False, "undecided"),
        (0.05, 0.06, 0.05, False, "undecided"),
        (0.051, 0.06, 0.05, False, "not met"),
        (0.7, 0.9, 0.7, True, "met"),
        (0.6, 0.9, 0.7, True, "undecided"),
        (0.6, 0.69, 0.7, True, "not met"),
    ],
)
def test_the_whole_interval_decides(
    low: float, high: float, bar: float, more: bool, expected: str
) -> None:
    assert verdict(Measure((low + high) / 2, low, high), bar, more) == expected


@given(
    st.integers(1, 60), st.integers(0, 60), st.integers(2, 20),
    st.floats(0.01, 0.99), st.booleans(),
)  # fmt: skip
def test_more_images_of_the_same_share_only_decide(
    n: int, hits: int, times: int, bar: float, more: bool
) -> None:
    few, many = (wilson_rate(min(hits, n) * k, n * k) for k in (1, times))
    said = [verdict(Measure(*rate[:3]), bar, more) for rate in (few, many)]  # type: ignore[arg-type]
    assert said[0] in ("undecided", said[1])


def test_the_interval_of_a_difference_holds_both_intervals() -> None:
    found = difference(Measure(0.5, 0.4, 0.7), Measure(0.2, 0.1, 0.25))
    assert found == pytest.approx((0.3, 0.15, 0.6))
    assert difference(None, Measure(0.2, 0.1, 0.25)) is None


def test_what_was_not_measured_is_not_said() -> None:
    changes = {f"{part}__anchor": NOTHING for part in ("seen_target", "unseen_target")}
    text = describe_outcome(make_result(**changes, related__retention=NOTHING))["text"]
    assert "anchor" not in text
    assert "90% of the unrelated images are still right" in text
    assert "of the related" not in text
    style = {**make_result(), "kind": "style"}
    assert "80% of these images show the prompt's object." in describe_outcome(style)["text"]
    neither = describe_outcome(
        make_result(related__retention=NOTHING, unrelated__retention=NOTHING)
    )
    assert neither["head"] == "Forgotten; what is kept was not measured"
    assert (neither["missed"], neither["verdict"]) == ([], "undecided")
    unjudged = describe_outcome({"kind": "instance", "sets": {}})
    assert (unjudged["head"], unjudged["text"]) == ("Not judged", "")
    assert goal_values(make_result(seen_target__right=NOTHING))[0] is None
