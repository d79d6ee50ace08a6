"""Rates over targets, seeds and prompts, with intervals that know all three.

Samples of M methods: for each target, for each training seed, hits and counts by prompt, each
(M, P). The rate is the mean over targets of the mean over seeds of hits / counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from unlearn.evaluation.intervals import wilson_interval

Counts = NDArray[np.int64]
Samples = list[list[tuple[Counts, Counts]]]


class Estimate(NamedTuple):
    """A value with its 95 % interval and the number of images; nan where nothing was measured."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        if not self.n:
            return "n/a"
        return f"{self.value:.1%} [{self.low:.1%}, {self.high:.1%}] ({self.n})"

    @property
    def points(self) -> str:
        """As a difference, in percentage points."""
        return f"{100 * self.value:+.1f} [{100 * self.low:+.1f}, {100 * self.high:+.1f}]"


def sample(methods: Sequence[Sequence[tuple[int, int]]]) -> tuple[Counts, Counts]:
    """Hits and counts (M, P) of methods on the same prompts in the same order."""
    array = np.array(methods, dtype=np.int64)
    return array[..., 0], array[..., 1]


def rates_of_targets(samples: Samples) -> NDArray[np.float64]:
    """The rate of each method on each target (T, M)."""
    return np.array([
        np.mean([hits.sum(1) / np.maximum(n.sum(1), 1) for hits, n in seeds], axis=0)
        for seeds in samples
    ])  # fmt: skip


def mean_rates(samples: Samples) -> NDArray[np.float64]:
    """The rate of each method (M,)."""
    return np.asarray(rates_of_targets(samples).mean(0))


def draws_of_target(
    seeds: list[tuple[Counts, Counts]], number: int, generator: np.random.Generator
) -> NDArray[np.float64]:
    """The rates of one target (number, M), its seeds and its prompts drawn with replacement.

    All methods and seeds get the same prompts, so differences of methods are paired.
    """
    hits, n = (np.stack(side) for side in zip(*seeds, strict=True))  # each (S, M, P)
    of_prompts, of_seeds = (
        generator.multinomial(size, np.full(size, 1 / size), number)  # how often each was drawn
        for size in (hits.shape[2], len(hits))
    )
    drawn_hits, drawn_n = (np.einsum("kp,smp->ksm", of_prompts, side) for side in (hits, n))
    rates = drawn_hits / np.maximum(drawn_n, 1)
    return np.asarray(np.einsum("ks,ksm->km", of_seeds / len(hits), rates))


def draws(samples: Samples, number: int = 1000, seed: int = 0) -> NDArray[np.float64]:
    """The rates of `number` bootstrap draws (number, M): targets, their seeds, then prompts."""
    generator = np.random.default_rng(seed)
    targets = generator.integers(len(samples), size=(number, len(samples)))
    rates = np.empty((*targets.shape, len(samples[0][0][0])))
    for target, seeds in enumerate(samples):
        places = targets == target
        rates[places] = draws_of_target(seeds, int(places.sum()), generator)
    return np.asarray(rates.mean(1))


def images_of(samples: Samples) -> int:
    """How many images of the first method there are."""
    return sum(int(n[0].sum()) for seeds in samples for _, n in seeds)


def rate_of(samples: Samples) -> Estimate:
    """The rate of the first method.

    Where nearly all images agree, few draws differ; so the interval holds at least Wilson's, each
    prompt being one image.
    """
    if not samples:
        return Estimate(math.nan, math.nan, math.nan, 0)
    value = float(mean_rates(samples)[0])
    least = wilson_interval(value, sum(seeds[0][0].shape[1] for seeds in samples))
    low, high = np.quantile(draws(samples)[:, 0], (0.025, 0.975))
    return Estimate(
        value, min(float(low), least[0]), max(float(high), least[1]), images_of(samples)
    )


def difference(samples: Samples) -> Estimate:
    """The first method's rate less the second's, paired."""
    values, rates = draws(samples), mean_rates(samples)
    low, high = np.quantile(values[:, 0] - values[:, 1], (0.025, 0.975))
    return Estimate(float(rates[0] - rates[1]), float(low), float(high), images_of(samples))


def sign_flip(samples: Samples, number: int = 2**16, seed: int = 0) -> float:
    """The two-sided p of the first method's rate being the second's, by targets alone.

    Were the methods alike, each target's difference could as well have had the other sign: the
    share of random signs (and those observed) under which the mean is as far from zero (Fisher
    1935). Few targets, or many without a difference, cannot give a small one.
    """
    rates = rates_of_targets(samples)
    apart = rates[:, 0] - rates[:, 1]
    signs = np.random.default_rng(seed).choice((-1.0, 1.0), size=(number, len(apart)))
    as_far = np.abs(signs @ apart) >= abs(apart.sum()) - 1e-12
    return float((as_far.sum() + 1) / (number + 1))
