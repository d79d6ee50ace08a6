"""Tuning: trials that are accepted, scores by hand, the best trial of made-up outcomes."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from experiments.lines import read_lines
from experiments.table2 import tune
from experiments.table2.run import read_rows
from unlearn.config.compose import compose
from unlearn.config.parse import parse_config
from unlearn.methods.options import MethodOptions

GRID = tune.read_grid()
FLAGS = ("base_right", "unlearned_right", "unlearned_anchor", "base_broken", "unlearned_broken")


def image(part: str, prompt: str, *flags: int) -> dict[str, str]:
    """A row of images.csv that counts."""
    values = dict(zip(FLAGS, map(str, flags), strict=True))
    row = {"set": part, "prompt": prompt, "seed": "0", "counts": "1", "base_anchor": "0"}
    return {**row, **values, "rmse": "0.0"}


IMAGES = [
    image("unseen_target", "a", 1, 0, 1, 0, 0),  # forgotten
    image("unseen_target", "b", 1, 0, 0, 0, 1),  # broken
    image("unseen_target", "c", 1, 1, 0, 0, 0),  # still there
    image("unseen_target", "d", 1, 0, 0, 0, 0),  # forgotten, not the anchor
    image("related", "e", 1, 1, 0, 0, 0),
    image("related", "f", 1, 0, 0, 0, 0),
    image("unrelated", "g", 0, 0, 0, 0, 0),  # the base model itself was wrong
    image("unrelated", "h", 1, 1, 0, 0, 0),
]


def test_every_method_has_as_many_trials() -> None:
    numbers = {len(trials) for trials in GRID["trials"].values()}
    assert len(numbers) == 1
    every = tune.trials_of(GRID, list(GRID["trials"]))
    assert len(every) == sum(map(len, GRID["trials"].values())) * len(GRID["targets"])
    assert len({(t["overrides"], t["target"]) for t in every.values()}) == len(every)


@pytest.mark.parametrize("method", GRID["trials"])
def test_every_trial_is_a_run_that_is_accepted(method: str) -> None:
    for trial in GRID["trials"][method]:
        parse_config(compose([f"concept={GRID['targets'][0]}", *GRID["common"], *trial]))


def test_no_target_of_the_table_is_tuned_on() -> None:
    tuned = {compose([f"concept={t}"]).concept.name for t in GRID["targets"]}
    assert len(tuned) >= 4
    assert not tuned & set(read_rows()["targets"])


def test_the_score_counts_what_is_forgotten_but_not_broken() -> None:
    found = tune.measures(IMAGES)
    assert found["unseen target"] == 1 / 4
    assert found["anchor"] == 1 / 4
    assert found["broken"] == 1 / 8
    assert found["retention"] == 2 / 3
    assert found["score"] == pytest.approx(2 / (1 / (2 / 4) + 1 / (2 / 3)))


def test_nothing_forgotten_or_nothing_kept_scores_nothing() -> None:
    kept = [i | {"unlearned_right": "1", "unlearned_broken": "0"} for i in IMAGES]
    lost = [i | {"unlearned_right": "0", "unlearned_broken": "0"} for i in IMAGES]
    assert tune.forget_keep_score(kept) == tune.forget_keep_score(lost) == 0


def test_the_best_trial_is_chosen_by_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept lines are read back; the mean over a kind's targets decides."""
    monkeypatch.setattr(tune, "OUTCOME", tmp_path / "outcome.csv")
    worse = [i | {"unlearned_right": "0"} if i["prompt"] == "e" else i for i in IMAGES]
    better = [i | {"unlearned_right": "0"} if i["prompt"] == "c" else i for i in IMAGES]
    for number, overrides, target, kind, images in (
        ("0", "method.lr=1", "x", "instance", IMAGES),
        ("0", "method.lr=1", "y", "instance", worse),
        ("1", "method.lr=2", "x", "instance", IMAGES),
        ("1", "method.lr=2", "y", "instance", IMAGES),
        ("4", "method.lr=2", "x", "instance", IMAGES),  # another number for the same trial
        ("2", "method.lr=3", "x", "instance", better),  # not on y
        ("0", "method.lr=1", "z", "style", IMAGES),
    ):
        with (tmp_path / "images.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(images[0]))
            writer.writeheader()
            writer.writerows(images)
        trial = dict(zip(tune.KEYS, ("esd", number, target, kind, overrides), strict=True))
        tune.keep(trial, tmp_path)
    means = tune.mean_scores(read_lines(tune.OUTCOME))
    assert [overrides for overrides, _ in means["esd", "instance"]] == [
        "method.lr=2",
        "method.lr=1",
    ]
    assert means["esd", "style"] == [("method.lr=1", pytest.approx(4 / 7, abs=1e-4))]


TARGETS = {"instance": "development/tiger", "style": "development/blob"}
SELECTS = {
    "uce": ["method=uce", "method.edits=names"],
    "uce_prompts": ["method=uce"],
}
UNDER = {  # the best score, by as much at most; the table's header and the README say so
    ("doco", "instance"): 0.001,
    ("uce", "style"): 0.009,  # its λ is the best over both kinds
}


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("method", GRID["trials"])
def test_the_settings_are_those_of_the_best_trial(method: str, kind: str) -> None:
    def settings(*overrides: str) -> tuple[MethodOptions, int]:
        config = parse_config(compose([f"concept={TARGETS[kind]}", *overrides]))
        return config.options, config.steps

    default = settings(*SELECTS.get(method, [f"method={method}"]))
    trials = tune.mean_scores(read_lines(tune.OUTCOME))[method, kind]
    own = [score for overrides, score in trials if settings(*overrides.split()) == default]
    assert own[0] >= trials[0][1] - UNDER.get((method, kind), 0.0001)
