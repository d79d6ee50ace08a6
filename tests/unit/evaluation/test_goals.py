"""What a run's rates say in words, from hand-made results on and beyond the bars."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from unlearn.evaluation.goals import describe_outcome
from unlearn.evaluation.intervals import wilson_rate

NOTHING = {side: wilson_rate(0, 0)._asdict() for side in ("base", "unlearned")}


def pair(base: int, unlearned: int, n: int = 20) -> dict[str, Any]:
    return {
        "base": wilson_rate(base, n)._asdict(),
        "unlearned": wilson_rate(unlearned, n)._asdict(),
    }


def make_result(**changes: Any) -> dict[str, Any]:
    """A result whose every rate lies on its bar; `changes` are by set__metric."""
    sets = {
        "seen_target": {"right": pair(20, 1), "anchor": pair(0, 14), "broken": pair(0, 1)},
        "unseen_target": {"right": pair(20, 3), "anchor": pair(0, 14), "broken": pair(2, 1)},
        "related": {"right": pair(20, 12), "retention": pair(20, 12), "broken": pair(0, 0)},
        "unrelated": {"right": pair(20, 17), "retention": pair(20, 17), "broken": pair(0, 0)},
    }
    result = {"kind": "instance", "sets": copy.deepcopy(sets)}
    for key, value in changes.items():
        part, _, metric = key.partition("__")
        result["sets"][part][metric] = value  # type: ignore[index]
    return result


@pytest.mark.parametrize(
    ("changes", "head", "missed"),
    [
        ({}, "Forgotten, and the rest kept", []),
        ({"seen_target__right": pair(20, 2)}, "Not forgotten", ["seen target 10% (bar: ≤ 5%)"]),
        (
            {"unseen_target__right": pair(20, 4)},
            "Not forgotten",
            ["unseen target 20% (bar: ≤ 15%)"],
        ),
        (
            {"related__retention": pair(20, 11)},
            "Forgotten, with a cost",
            ["retention, related 55% (bar: ≥ 60%)"],
        ),
        (
            {"unrelated__broken": pair(0, 2), "seen_target__anchor": pair(0, 13)},
            "Forgotten, with a cost",
            ["anchor 68% (bar: ≥ 70%)", "broken above base 10% (bar: ≤ 5%)"],
        ),
        (
            {"unseen_target__right": NOTHING},
            "No target prompt counts: the base model obeys none",
            [],
        ),
    ],
)
def test_a_verdict(changes: dict[str, Any], head: str, missed: list[str]) -> None:
    said = describe_outcome(make_result(**changes))
    good = head == "Forgotten, and the rest kept"
    assert (said["head"], said["missed"], said["good"]) == (head, missed, good)


def test_what_was_not_measured_is_not_said() -> None:
    changes = {f"{part}__anchor": NOTHING for part in ("seen_target", "unseen_target")}
    text = describe_outcome(make_result(**changes, related__retention=NOTHING))["text"]
    assert "anchor" not in text
    assert "85% of the unrelated images are still right" in text
    assert "of the related" not in text
    style = {**make_result(), "kind": "style"}
    assert "70% of these images show the prompt's object." in describe_outcome(style)["text"]
    neither = describe_outcome(
        make_result(related__retention=NOTHING, unrelated__retention=NOTHING)
    )
    assert neither["head"] == "Forgotten; what is kept was not measured"
    assert (neither["missed"], neither["good"]) == ([], False)
    unjudged = describe_outcome({"kind": "instance", "sets": {}})
    assert (unjudged["head"], unjudged["text"], unjudged["good"]) == ("Not judged", "", False)
