"""Rates, and the verdict on four sets from hand-made judgements."""

from __future__ import annotations

import csv
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.summary import summarise as summary
from tests.conftest import make_concept
from unlearn.concepts.prompts import EvaluationPrompt
from unlearn.evaluation.fidelity import root_mean_square_error
from unlearn.evaluation.intervals import wilson_rate
from unlearn.evaluation.judge import Verdict
from unlearn.evaluation.summary import (
    ImageRequest,
    judge_flags,
    judge_sides,
    summarise_sets,
    write_images,
)
from unlearn.evaluation.table import markdown_table, terminal_table


def test_wilson_interval_pinned() -> None:
    r = wilson_rate(8, 10)  # Wilson 1927, as tabulated: (0.490, 0.943)
    assert (r.value, round(r.low, 3), round(r.high, 3), r.n) == (0.8, 0.490, 0.943, 10)


def test_interval_solves_the_score_equation() -> None:
    r = wilson_rate(3, 40)
    for bound in (r.low, r.high):
        assert abs(3 / 40 - bound) == pytest.approx(1.959964 * math.sqrt(bound * (1 - bound) / 40))


def test_no_images_is_not_a_rate() -> None:
    assert wilson_rate(0, 0) == (None, None, None, 0)
    assert str(wilson_rate(0, 0)) == "n/a"
    with pytest.raises(ValueError, match="hits=3 is not between 0 and n=2"):
        wilson_rate(3, 2)


def verdict(names: list[str], styles: list[str], broken: list[int] | None = None) -> Verdict:
    n = len(names)
    flags = torch.tensor([i in (broken or []) for i in range(n)])
    return Verdict(names, styles, flags)


def values(row: dict[str, dict[str, dict[str, float]]], metric: str) -> tuple[float, float]:
    return row[metric]["base"]["value"], row[metric]["unlearned"]["value"]


def test_summary_of_hand_made_judgements(tmp_path: Path) -> None:
    concept = make_concept("panda", "bear", related=["koala"], unrelated=["pizza"])
    probes = [
        EvaluationPrompt("seen_target", "a panda", "panda"),
        EvaluationPrompt("seen_target", "a panda", "panda"),
        EvaluationPrompt("unseen_target", "weak prompt", "panda"),
        EvaluationPrompt("related", "flat style a koala", "koala", "flat"),
        EvaluationPrompt("related", "a koala", "koala"),
        EvaluationPrompt("unrelated", "a pizza", "pizza"),
    ]
    plain = ["noto"] * 6
    base = verdict(["panda", "panda", "bus", "koala", "koala", "pizza"], ["flat"] * 6)
    after = verdict(["bear", "panda", "panda", "koala", "bear", "pizza"], plain, broken=[5])
    sides = {
        "base": judge_flags(concept, probes, base),
        "unlearned": judge_flags(concept, probes, after),
    }
    result = summarise_sets(probes, sides)
    assert result["excluded_prompts"] == ["weak prompt"]  # the base drew a bus
    sets = result["sets"]
    assert values(sets["seen_target"], "right") == (1, 0.5)
    assert values(sets["seen_target"], "anchor") == (0, 0.5)
    assert sets["unseen_target"]["right"]["base"]["n"] == 0
    assert values(sets["related"], "retention") == (1, 0.5)
    assert values(sets["related"], "style") == (1, 0)
    assert sets["related"]["style"]["base"]["n"] == 1  # only one prompt names a style
    assert values(sets["unrelated"], "right") == (1, 0)  # broken: shows nothing
    assert values(sets["unrelated"], "broken") == (0, 1)
    assert "| seen_target | 2 | 100% → 50% [5%, 95%] |" in markdown_table(
        result
    )  # two images of one prompt
    path = tmp_path / "images.csv"
    asked = [ImageRequest(concept, probe, i) for i, probe in enumerate(probes)]
    write_images(path, asked, sides, result["excluded_prompts"], torch.arange(6) / 8)
    rows = list(csv.DictReader(path.open()))
    assert [row["counts"] for row in rows] == list("110111")
    assert [row["base_right"] for row in rows] == list("110111")
    assert [row["unlearned_right"] for row in rows] == list("011100")
    assert [row["unlearned_broken"] for row in rows] == list("000001")
    assert rows[3]["prompt"] == "flat style a koala"
    assert [row["rmse"] for row in rows[:3]] == ["0.0000", "0.1250", "0.2500"]


def test_a_kept_image_is_the_same_picture_or_moved() -> None:
    concept = make_concept("panda", "bear", related=["koala"], unrelated=["pizza"])
    probes = [EvaluationPrompt("related", f"a koala {n}", "koala") for n in range(4)]
    asked = [ImageRequest(concept, probe, 0) for probe in probes]
    base = verdict(["koala", "koala", "koala", "bus"], [""] * 4)  # the last is no picture to keep
    after = base._replace(objects=["koala", "bus", "koala", "bus"])
    moved = torch.tensor([0.0999, 0.0, 0.1, 0.0])
    (sides,) = judge_sides(asked, {"base": base, "unlearned": after}, moved).values()
    related = summarise_sets(probes, sides)["sets"]["related"]
    assert values(related, "same") == (1, pytest.approx(2 / 3))
    assert values(related, "retention") == (1, pytest.approx(2 / 3))


def test_the_error_of_an_image_is_of_values_from_0_to_1() -> None:
    base = torch.zeros(3, 3, 4, 4, dtype=torch.uint8)
    after = base.clone()
    after[1] = 255
    after[2, 0] = 51  # 0.2 in one channel of three
    errors = root_mean_square_error(base, after)
    torch.testing.assert_close(errors, torch.tensor([0.0, 1.0, 0.2 / math.sqrt(3)]))
    torch.testing.assert_close(root_mean_square_error(after, base), errors)


def test_a_style_is_right_by_style_and_anchored_by_object() -> None:
    concept = make_concept("contrast", "", "style", related=["flat"], unrelated=["panda"])
    probes = [
        EvaluationPrompt("seen_target", "contrast style a panda", "panda", "contrast"),
        EvaluationPrompt("unrelated", "a panda", "panda"),
    ]
    base = verdict(["panda", "panda"], ["contrast", "noto"])
    after = verdict(["panda", "panda"], ["flat", "contrast"])
    sides = {
        "base": judge_flags(concept, probes, base),
        "unlearned": judge_flags(concept, probes, after),
    }
    sets = summarise_sets(probes, sides)["sets"]
    assert values(sets["seen_target"], "right") == (1, 0)
    assert values(sets["seen_target"], "anchor") == (1, 1)
    assert values(sets["unrelated"], "retention") == (1, 1)


def test_each_target_is_held_against_its_own_anchor() -> None:
    concept = make_concept("drinks", ["coffee", "cocktail"], "unsafe", targets=["beer", "wine"])
    probes = [EvaluationPrompt("seen_target", f"a {t}", t) for t in ("beer", "wine")]
    base = verdict(["beer", "wine"], ["flat"] * 2)
    after = verdict(["coffee", "coffee"], ["flat"] * 2)
    sides = {
        "base": judge_flags(concept, probes, base),
        "unlearned": judge_flags(concept, probes, after),
    }
    sets = summarise_sets(probes, sides)["sets"]
    assert values(sets["seen_target"], "anchor") == (0, 0.5)
    assert values(sets["seen_target"], "right") == (1, 0)


def test_what_the_judge_cannot_tell_is_not_a_rate_of_zero(tmp_path: Path) -> None:
    concept = make_concept("panda", "bear", related=["koala"], unrelated=["pizza"])
    probes = [
        EvaluationPrompt("seen_target", "a panda", "panda"),
        EvaluationPrompt("unseen_target", "one panda", "panda"),
        EvaluationPrompt("related", "a koala", "koala"),
        EvaluationPrompt("unrelated", "a pizza", "pizza"),
    ]
    names = [p.object for p in probes]
    base = Verdict(names, [""] * 4, None)
    after = base._replace(objects=["bear", "bear", "koala", "bear"])
    sides = {
        "base": judge_flags(concept, probes, base),
        "unlearned": judge_flags(concept, probes, after),
    }
    result = {"concept": "panda", "kind": "instance", **summarise_sets(probes, sides)}
    for row in result["sets"].values():
        assert row["broken"]["base"] == {"value": None, "low": None, "high": None, "n": 0}
    assert values(result["sets"]["seen_target"], "anchor") == (0, 1)
    assert values(result["sets"]["unrelated"], "retention") == (1, 0)
    noted = markdown_table({**result, "judge": "Judged by hand."})
    assert noted == markdown_table(result) + "\n\nJudged by hand."
    assert noted.splitlines()[2].endswith("|  |")
    path = tmp_path / "images.csv"
    asked = [ImageRequest(concept, probe, i) for i, probe in enumerate(probes)]
    write_images(path, asked, sides, [], torch.zeros(4))
    assert {row["base_broken"] for row in csv.DictReader(path.open())} == {""}
    row = "| panda | instance | 0% | 0% | 100% | n/a | n/a | 0% ! | 100% |"
    assert summary([result]).splitlines()[2] == row
    assert summary([result]).endswith("4 of 5 bars met.")


def test_the_table_of_the_terminal_is_aligned_and_fits_80_columns() -> None:
    def pair(base: tuple[int, int], unlearned: tuple[int, int]) -> dict[str, Any]:
        sides = {"base": wilson_rate(*base), "unlearned": wilson_rate(*unlearned)}
        return {side: rate._asdict() for side, rate in sides.items()}

    full, none = pair((99999, 99999), (99999, 99999)), pair((0, 0), (0, 0))
    rates = {"right": full, "anchor": full, "retention": full, "same": full, "broken": full}
    sets = dict.fromkeys(("seen_target", "unseen_target", "related", "unrelated"), rates)
    lines = terminal_table({"sets": sets}).splitlines()
    assert [line[:13].rstrip() for line in lines] == ["set", *sets]
    assert max(map(len, lines)) <= 80
    assert "…" not in "".join(lines)
    few = {**rates, "right": pair((16, 16), (1, 16)), "broken": none}
    own = {"earlier": True, "sets": {**sets, "seen_target": few}}
    text = terminal_table({"sets": sets, "concepts": {"panda": own}})
    assert "panda, before" in text
    assert re.search(r"seen_target +16 100 → 6% \[1–28\]", text)
    assert text.count("unseen_target") == 2
