"""Rates, and the verdict on four sets from hand-made judgements."""

from __future__ import annotations

import math

import pytest
import torch

from unlearn.concepts import Concept, Probe
from unlearn.evaluation.evaluate import summarise, table
from unlearn.evaluation.judge import Verdict
from unlearn.evaluation.metrics import rate
from unlearn.vocabulary import vocabulary

NAMES = vocabulary().names


def test_wilson_interval_pinned() -> None:
    r = rate(8, 10)  # Wilson 1927, as tabulated: (0.490, 0.943)
    assert (r.value, round(r.low, 3), round(r.high, 3), r.n) == (0.8, 0.490, 0.943, 10)


def test_interval_solves_the_score_equation() -> None:
    r = rate(3, 40)
    for bound in (r.low, r.high):
        assert abs(3 / 40 - bound) == pytest.approx(1.959964 * math.sqrt(bound * (1 - bound) / 40))


def test_no_images_is_not_a_rate() -> None:
    assert rate(0, 0) == (None, None, None, 0)
    assert str(rate(0, 0)) == "n/a"
    with pytest.raises(ValueError, match="hits=3 is not between 0 and n=2"):
        rate(3, 2)


def verdict(names: list[str], broken: list[bool] | None = None) -> Verdict:
    n = len(names)
    return Verdict(
        torch.tensor([NAMES.index(x) for x in names]),
        torch.zeros(n, dtype=torch.long),
        torch.ones(n),
        torch.tensor(broken or [False] * n),
    )


def test_summary_of_hand_made_judgements() -> None:
    concept = Concept("instance", "panda", ["panda"], "bear", ["koala"], ["pizza"])
    sets = ["seen_target", "seen_target", "unseen_target", "related", "related", "unrelated"]
    expected = ["panda", "panda", "panda", "koala", "koala", "pizza"]
    prompts = ["a panda", "a panda", "weak prompt", "a koala", "a koala", "a pizza"]
    probes = [Probe(s, p, e, e) for s, p, e in zip(sets, prompts, expected, strict=True)]
    base = verdict(["panda", "panda", "bus", "koala", "koala", "pizza"])
    after = verdict(["bear", "panda", "panda", "koala", "bear", "pizza"], [False] * 5 + [True])
    result = summarise(concept, probes, base, after)
    assert result["excluded_prompts"] == ["weak prompt"]  # the base drew a bus
    seen = result["sets"]["seen_target"]
    assert (seen["right"]["value"], seen["anchor"]["value"], seen["broken"]["value"]) == (
        0.5,
        0.5,
        0,
    )
    assert result["sets"]["unseen_target"]["right"]["n"] == 0
    assert result["sets"]["related"]["retention"]["value"] == 0.5
    unrelated = result["sets"]["unrelated"]
    assert (unrelated["retention"]["value"], unrelated["broken"]["value"]) == (0, 1)
    assert "| seen_target | 2 |" in table(result)
