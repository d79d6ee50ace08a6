"""Rates over targets, seeds and prompts, with intervals that know all three.

Samples of M methods: for each target, for each training seed, hits and counts by prompt, each
(M, P). The rate is the mean over targets of the mean over seeds of hits / counts.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]
Samples = list[list[tuple[Counts, Counts]]]


class Estimate(NamedTuple):
    """A value with its 95 % interval; nan where nothing was measured."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        if self.value != self.value:
            return "n/a"
        return f"{self.value:.1%} [{self.low:.1%}, {self.high:.1%}]"

    @property
    def points(self) -> str:
        """As a difference, in percentage points."""
        return f"{100 * self.value:+.1f} [{100 * self.low:+.1f}, {100 * self.high:+.1f}]"


def mean_rates(samples: Samples) -> NDArray[np.float64]:
    """The rate of each method (M,)."""
    targets = [
        np.mean([hits.sum(1) / np.maximum(n.sum(1), 1) for hits, n in seeds], axis=0)
        for seeds in samples
    ]
    return np.asarray(np.mean(targets, axis=0))


def resampled(samples: Samples, generator: np.random.Generator) -> Samples:
    """One bootstrap draw: targets, then their seeds, then prompts, each with replacement.

    All methods get the same draw, so their differences are paired.
    """
    drawn: Samples = []
    for target in generator.integers(len(samples), size=len(samples)):
        seeds = samples[target]
        prompts = seeds[0][0].shape[1]
        chosen = generator.integers(prompts, size=prompts)
        which = generator.integers(len(seeds), size=len(seeds))
        drawn.append([(seeds[i][0][:, chosen], seeds[i][1][:, chosen]) for i in which])
    return drawn


def draws(samples: Samples, number: int = 1000, seed: int = 0) -> NDArray[np.float64]:
    """The rates of `number` bootstrap draws (number, M)."""
    generator = np.random.default_rng(seed)
    return np.stack([mean_rates(resampled(samples, generator)) for _ in range(number)])


def estimate(value: float, values: NDArray[np.float64]) -> Estimate:
    """A value with the percentile interval of its bootstrap draws."""
    low, high = np.quantile(values, (0.025, 0.975))
    return Estimate(value, float(low), float(high))


def rate_of(samples: Samples) -> Estimate:
    """The rate of the first method."""
    if not samples:
        return Estimate(*[float("nan")] * 3)
    return estimate(float(mean_rates(samples)[0]), draws(samples)[:, 0])


def difference(samples: Samples) -> Estimate:
    """The first method's rate less the second's, paired."""
    values, rates = draws(samples), mean_rates(samples)
    return estimate(float(rates[0] - rates[1]), values[:, 0] - values[:, 1])
