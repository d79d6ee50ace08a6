"""A loader whose batches hold the frozen teacher's outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from unlearn.methods.manual_steps import Batch

LATENT_PIXELS = 32 * 16 * 16  # of the latents of one pass of the teacher; more gain no time


def batches_at_once(batch_size: int, side: int) -> int:
    """Return how many batches the teacher takes in one pass.

    Args:
        batch_size: the samples of a batch.
        side: the side of a latent.
    """
    return max(1, LATENT_PIXELS // (batch_size * side**2))


class TeacherAhead:
    """Iterate over a loader's batches, each with the teacher's outputs as "teacher_outputs".

    The teacher does not depend on what trains, so it can go ahead. One pass for the batches of
    several steps takes less time than a pass for each.

    Args:
        loader: gives batches of `PairDataset`.
        count: how many batches the teacher takes in one pass.
        teacher_outputs: returns the teacher's outputs for a batch, one a sample on dimension 0. Its
            second argument is the number of the last batch that they are for.
        transfer: moves a batch to the device.
    """

    def __init__(
        self,
        loader: Iterable[Batch],
        count: int,
        teacher_outputs: Callable[[Batch, int], Tensor],
        transfer: Callable[[Any], Any],
    ) -> None:
        self.loader, self.count, self.done = loader, count, 0
        self.teacher_outputs, self.transfer = teacher_outputs, transfer

    def __len__(self) -> int:
        return len(self.loader)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Batch]:
        batches, first = iter(self.loader), self.done - self.done % self.count
        while group := list(islice(batches, self.count)):
            moved = [self.transfer(batch) for batch in group]
            joined = {key: torch.cat([batch[key] for batch in moved]) for key in moved[0]}
            sizes = [len(batch["latents"]) for batch in moved]
            outputs = self.teacher_outputs(joined, first + len(group) - 1).split(sizes)
            for number, (batch, own) in enumerate(zip(moved, outputs, strict=True), first):
                if number == self.done:
                    self.done += 1
                    yield {**batch, "teacher_outputs": own}
            first += len(group)

    def state_dict(self) -> dict[str, int]:
        """Return how many batches were given."""
        return {"done": self.done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue after the batches that were given.

        The teacher takes the whole group of the next batch again, since rounding depends on the
        batch that an output is computed in.
        """
        self.done = state["done"]
        self.loader.load_state_dict({"done": self.done - self.done % self.count})  # type: ignore[attr-defined]
