"""Load the whole run's batches, and go on where a checkpoint stopped."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader


class ResumableLoader:
    """A rank's batches in order, which Lightning resumes after those that a checkpoint counts.

    Args:
        dataset: the samples of the whole run.
        batch_size: the number of samples in a rank's batch.
        rank: the rank, which is also the number of its first sample.
        world: the number of ranks; a rank takes every `world`-th sample.
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
        """Return how many batches were given, for Lightning's checkpoint."""
        return {"done": self.done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on after as many batches as the checkpoint counts."""
        self.done = state["done"]
