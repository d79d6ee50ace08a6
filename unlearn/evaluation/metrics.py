"""Rates with intervals."""

from __future__ import annotations

import math
from typing import NamedTuple


class Rate(NamedTuple):
    """A share with its 95 % Wilson interval, and the number of images behind it."""

    value: float | None
    low: float | None
    high: float | None
    n: int

    def __str__(self) -> str:
        return f"{self.value:.0%} [{self.low:.0%}, {self.high:.0%}]" if self.n else "n/a"


def rate(hits: int, n: int, z: float = 1.959963984540054) -> Rate:
    """hits / n with the Wilson score interval (Wilson 1927); all None where n is 0.

    Raises:
        ValueError: hits is not between 0 and n.
    """
    if not 0 <= hits <= n:
        raise ValueError(f"hits={hits} is not between 0 and n={n}")
    if n == 0:
        return Rate(None, None, None, 0)
    p = hits / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Rate(p, max(0.0, centre - half), min(1.0, centre + half), n)
