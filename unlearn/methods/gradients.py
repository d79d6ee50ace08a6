"""The gradients of one step, each under its name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Gradients(NamedTuple):
    """Hold the gradients of one step, one tensor a weight; empty where there is none.

    Attributes:
        unlearn: g_u, of the unlearn loss in the trained weights.
        relearn: g_r, of the relearn loss in the trained weights.
        discriminator: g_D, of the discriminator's loss in its parameters.
    """

    unlearn: Sequence[Tensor] = ()
    relearn: Sequence[Tensor] = ()
    discriminator: Sequence[Tensor] = ()

    def flatten(self) -> Tensor:
        """Return all entries as one vector: those of g_u, then of g_r, then of g_D."""
        return torch.cat([g.flatten() for part in self for g in part])

    def restore(self, flat: Tensor) -> Gradients:
        """Return the entries of a vector in the shapes of these gradients: `flatten`'s inverse."""
        pieces = iter(flat.split([g.numel() for part in self for g in part]))
        return Gradients(*([next(pieces).view_as(g) for g in part] for part in self))

    def divide(self, count: int) -> Gradients:
        """Return every gradient divided by a number."""
        return Gradients(*([g / count for g in part] for part in self))

    def add(self, other: Gradients) -> Gradients:
        """Return the sum with other gradients of the same shapes."""
        pairs = zip(self, other, strict=True)
        return Gradients(*([a + b for a, b in zip(*pair, strict=True)] for pair in pairs))
