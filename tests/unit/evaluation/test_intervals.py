"""Means and their bootstrap, against closed forms and every draw written out."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from unlearn.evaluation.intervals import Mean, bootstrap_mean, clustered_rate, wilson_rate


def test_ungrouped_interval_is_that_of_the_normal() -> None:
    values = np.random.default_rng(1).normal(3, 2, size=4000)
    found = bootstrap_mean(values)
    half = 1.96 * values.std() / math.sqrt(4000)
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.1 * half)
    assert found.n == 4000


def test_groups_count_once_however_many_images_they_have() -> None:
    centres = np.random.default_rng(2).normal(size=100)
    values = np.repeat(centres, 20)  # images of a prompt are all the same
    prompts = [f"prompt {i // 20}" for i in range(2000)]
    found = bootstrap_mean(values, prompts)
    half = 1.96 * centres.std() / math.sqrt(100)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.1)
    alone = bootstrap_mean(values)
    assert alone.high - alone.low < 0.3 * (found.high - found.low)


def test_bootstrap_matches_every_draw_written_out() -> None:
    groups = {"a": [0.0, 1.0], "b": [10.0, 14.0, 18.0]}
    outcomes: list[tuple[float, float]] = []  # mean, probability
    for taken in itertools.product(groups, repeat=2):
        sides = [list(itertools.product(groups[g], repeat=len(groups[g]))) for g in taken]
        for first, second in itertools.product(*sides):
            probability = 1 / (4 * len(sides[0]) * len(sides[1]))
            outcomes.append((float(np.mean(first + second)), probability))
    outcomes.sort()
    steps = np.cumsum([p for _, p in outcomes])
    assert steps[-1] == pytest.approx(1)

    def quantile(q: float) -> float:
        return outcomes[int(np.searchsorted(steps, q))][0]

    # the order in which the images come does not matter, only their groups
    found = bootstrap_mean([10.0, 0.0, 14.0, 1.0, 18.0], ["b", "a", "b", "a", "b"])
    assert found.value == pytest.approx(8.6)
    assert quantile(0.015) <= found.low <= quantile(0.035)
    assert quantile(0.965) <= found.high <= quantile(0.985)
    assert found.low < 0.5 and found.high > 15


def test_same_values_same_interval_whatever_holds_them() -> None:
    flags = torch.tensor([True, False, True, True])
    expected = bootstrap_mean([1.0, 0.0, 1.0, 1.0])
    assert bootstrap_mean(flags) == bootstrap_mean(flags.numpy()) == expected
    assert expected.low < expected.value == 0.75 < expected.high


def test_one_value_has_no_spread() -> None:
    assert bootstrap_mean([2.5] * 7, list("aabbbcd")) == (2.5, 2.5, 2.5, 7)


def test_no_values_are_no_mean() -> None:
    assert bootstrap_mean([]) == bootstrap_mean([], []) == (None, None, None, 0)
    assert str(bootstrap_mean([])) == "n/a"


def test_printed_to_four_digits() -> None:
    assert str(Mean(74.4321, 73.9, 75.0123, 800)) == "74.43 [73.9, 75.01]"
    assert str(Mean(0.00123456, -0.0001, 0.0025, 50)) == "0.001235 [-0.0001, 0.0025]"


def test_groups_must_match_values() -> None:
    with pytest.raises(ValueError, match="2 groups were given for 3 values"):
        bootstrap_mean([1, 2, 3], ["a", "b"])


def test_independent_images_have_the_wilson_interval() -> None:
    flags = [1] * 30 + [0] * 70
    alone = clustered_rate(flags, [str(i) for i in range(100)])
    expected = wilson_rate(30, 100)  # but for the 100 / 99 of an unbiased variance
    assert (alone.value, alone.n) == (0.3, 100)
    assert alone.low == pytest.approx(expected.low, abs=1e-3)
    assert alone.high == pytest.approx(expected.high, abs=1e-3)


def test_images_of_one_prompt_that_agree_count_as_one() -> None:
    """Ten copies of each image tell nothing more than one."""
    flags = np.repeat([1] * 30 + [0] * 70, 10)
    copied = clustered_rate(flags, [str(i // 10) for i in range(1000)])
    once = clustered_rate(flags[::10], [str(i) for i in range(100)])
    assert copied.n == 1000
    assert (copied.low, copied.high) == pytest.approx((once.low, once.high))


def test_where_all_flags_agree_each_prompt_counts_as_one_image() -> None:
    assert clustered_rate([0] * 40, [str(i % 4) for i in range(40)])[:3] == wilson_rate(0, 4)[:3]
    assert clustered_rate([], []).value is None
    with pytest.raises(ValueError, match="1 groups were given for 2 flags"):
        clustered_rate([0, 1], ["a"])


def test_the_interval_of_a_share_covers_it() -> None:
    """95 % of the time, with prompts that differ: checked on 400 draws of 40 prompts."""
    generator = np.random.default_rng(0)
    groups = [str(i // 10) for i in range(400)]
    covered = 0
    for _ in range(400):
        p = np.repeat(generator.beta(1, 3, 40), 10)  # mean 0.25
        found = clustered_rate(generator.random(400) < p, groups)
        covered += found.low <= 0.25 <= found.high
    assert 0.92 <= covered / 400 <= 0.98
