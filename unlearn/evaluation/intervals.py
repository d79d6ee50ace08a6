"""Compute rates and means with 95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class Rate(NamedTuple):
    """A share with its 95 % Wilson interval, and the number of images behind it."""

    value: float | None
    low: float | None
    high: float | None
    n: int

    def __str__(self) -> str:
        return f"{self.value:.0%} [{self.low:.0%}, {self.high:.0%}]" if self.n else "n/a"


class Mean(NamedTuple):
    """A mean or a distance with its 95 % interval, and the number of images behind it."""

    value: float | None
    low: float | None
    high: float | None
    n: int

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]" if self.n else "n/a"


def wilson_interval(p: float, n: float, z: float = 1.959963984540054) -> tuple[float, float]:
    """Return the 95 % score interval (Wilson 1927) of a share p of n independent images."""
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def wilson_rate(hits: int, n: int) -> Rate:
    """Return hits / n with its Wilson interval; all None where n is 0.

    Raises:
        ValueError: hits is not between 0 and n.
    """
    if not 0 <= hits <= n:
        raise ValueError(f"hits={hits} is not between 0 and n={n}")
    if n == 0:
        return Rate(None, None, None, 0)
    return Rate(hits / n, *wilson_interval(hits / n, n), n)


def clustered_rate(flags: ArrayLike, groups: Sequence[str]) -> Rate:
    """Return the share of flags (N,) that are set, with a Wilson interval that allows for groups.

    Images of one prompt are alike, so n images count as n / d independent images. d is the design
    effect: the variance of the share over prompts (linearized, as that of a ratio), divided by the
    variance of independent images, and 1 at the least. Where all flags agree, d is not known, and
    each prompt counts as one image.

    Source: Korn and Graubard 1998.

    Args:
        flags: one an image, (N,).
        groups: each image's prompt.

    Raises:
        ValueError: there are not as many groups as flags.
    """
    array = np.asarray(flags, dtype=np.float64)
    n = len(array)
    if len(groups) != n:
        raise ValueError(f"{len(groups)} groups were given for {n} flags")
    if n == 0:
        return wilson_rate(0, 0)
    numbers = np.unique(groups, return_inverse=True)[1]
    k, p = int(numbers.max()) + 1, float(array.mean())
    effective = float(k)
    if 0 < p < 1 and k > 1:
        residuals = np.bincount(numbers, array - p)
        effect = (k / (k - 1) * (residuals**2).sum() / n**2) / (p * (1 - p) / n)
        effective = n / max(1.0, effect)
    low, high = wilson_interval(p, effective)
    return Rate(p, low, high, n)


BOOTSTRAP_DRAWS = 1000  # bootstrap resamples


def bootstrap_mean(values: ArrayLike, groups: Sequence[str] | None = None) -> Mean:
    """Return the mean of values (N,) with a bootstrap interval; all None where N is 0.

    The percentile bootstrap takes groups with replacement. From each taken group it takes, with
    replacement, as many images as the group has. Images of one prompt are alike, so an interval
    over images alone would be too narrow. The bootstrap is seeded: the same values give the same
    interval.

    Args:
        values: one an image, (N,).
        groups: each image's prompt; None: each image is a group of its own.

    Raises:
        ValueError: there are not as many groups as values.
    """
    array = np.asarray(values, dtype=np.float64)
    n = len(array)
    if groups is not None and len(groups) != n:
        raise ValueError(f"{len(groups)} groups were given for {n} values")
    if n == 0:
        return Mean(None, None, None, 0)
    numbers = np.arange(n) if groups is None else np.unique(groups, return_inverse=True)[1]
    grouped = array[np.argsort(numbers, kind="stable")]
    sizes = np.bincount(numbers)
    starts = np.cumsum(sizes) - sizes
    generator = np.random.default_rng(0)
    means = np.empty(BOOTSTRAP_DRAWS)
    for draw in range(BOOTSTRAP_DRAWS):
        taken = generator.integers(len(sizes), size=len(sizes))
        first = np.repeat(starts[taken], sizes[taken])
        size = np.repeat(sizes[taken], sizes[taken])
        means[draw] = grouped[first + generator.integers(size)].mean()
    low, high = np.quantile(means, (0.025, 0.975))
    return Mean(float(array.mean()), float(low), float(high), n)
