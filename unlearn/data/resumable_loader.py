"""A loader of the whole run's batches that goes on where a checkpoint stopped."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader


class Batches:
    """A rank's batches in order, which Lightning can resume after those that a checkpoint knows.

    Args:
        dataset: the samples of the whole run.
        batch_size: samples of a rank's batch.
        rank: takes every `world`-th sample, from this one.
        world: number of ranks.
    """

    def __init__(self, dataset: Any, batch_size: int, rank: int = 0, world: int = 1) -> None:
        self.dataset, self.batch_size, self.done = dataset, batch_size, 0
        self.numbers = range(rank, len(dataset), world)

    def __len__(self) -> int:
        return len(self.numbers) // self.batch_size

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        left = self.numbers[self.done * self.batch_size :]
        for batch in DataLoader(self.dataset, self.batch_size, sampler=left):
            self.done += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """How many batches were given."""
        return {"done": self.done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on after so many batches."""
        self.done = state["done"]
