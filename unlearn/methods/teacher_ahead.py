"""A loader whose batches bring what the frozen teacher says of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from unlearn.methods.base import Batch

LATENT_PIXELS = 32 * 16 * 16  # of latents that one pass of the teacher is for; more gain no time


def batches_at_once(batch_size: int, side: int) -> int:
    """How many batches the teacher takes at once, of latents with sides of `side`."""
    return max(1, LATENT_PIXELS // (batch_size * side**2))


class TeacherAhead:
    """The batches of a loader, each with the teacher's outputs as "taught".

    The teacher does not depend on what trains, so it can go ahead: one pass for the batches of
    several steps takes less time than a pass for each.

    Args:
        loader: gives batches, see `PairDataset`.
        count: batches at once.
        teach: the teacher's outputs for a batch, one a sample on dimension 0; and its second
            argument is the number of the last batch that they are for.
        transfer: takes a batch to the device.
    """

    def __init__(
        self,
        loader: Iterable[Batch],
        count: int,
        teach: Callable[[Batch, int], Tensor],
        transfer: Callable[[Any], Any],
    ) -> None:
        self.loader, self.count, self.done = loader, count, 0
        self.teach, self.transfer = teach, transfer

    def __len__(self) -> int:
        return len(self.loader)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Batch]:
        batches, first = iter(self.loader), self.done - self.done % self.count
        while group := list(islice(batches, self.count)):
            moved = [self.transfer(batch) for batch in group]
            joined = {key: torch.cat([batch[key] for batch in moved]) for key in moved[0]}
            sizes = [len(batch["latents"]) for batch in moved]
            taught = self.teach(joined, first + len(group) - 1).split(sizes)
            for number, (batch, outputs) in enumerate(zip(moved, taught, strict=True), first):
                if number == self.done:
                    self.done += 1
                    yield {**batch, "taught": outputs}
            first += len(group)

    def state_dict(self) -> dict[str, int]:
        """How many batches were given."""
        return {"done": self.done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on after so many batches.

        The teacher takes the group of the next one whole, as it did before: rounding depends on the
        batch that an output is computed in.
        """
        self.done = state["done"]
        self.loader.load_state_dict({"done": self.done - self.done % self.count})  # type: ignore[attr-defined]
