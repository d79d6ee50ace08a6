"""Make batches of unlearn and relearn pairs, seeded by step and sample."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import Dataset

from unlearn.data.resumable_loader import ResumableLoader
from unlearn.data.training_data import TrainingData
from unlearn.models.noise_schedule import draw_noise, sample_generator


class PairDataset(Dataset[dict[str, Tensor]]):
    """The samples of the whole run: number `step * global_batch + i` is sample i of a step.

    A sample has an unlearn half and a relearn half. The images, noise and timesteps of both depend
    on (seed, step, i) alone, never on the rank. Where both halves are anchor images, they are never
    the same image.
    """

    def __init__(
        self, data: TrainingData, steps: int, global_batch: int, seed: int, num_timesteps: int
    ) -> None:
        self.data, self.steps, self.global_batch = data, steps, global_batch
        self.seed, self.num_timesteps = seed, num_timesteps

    def __len__(self) -> int:
        return self.steps * self.global_batch

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        step, i = divmod(number, self.global_batch)
        anchor, relearn = self.data.anchor, self.data.relearn
        # a negative index: apart from the generators of the noise, whose indices are from 0 on
        generator = sample_generator(self.seed, step, -1 - i)
        first, second = torch.randperm(len(anchor.prompt), generator=generator)[:2].tolist()
        if relearn is None:
            relearn = anchor
        else:
            second = int(torch.randint(len(relearn.prompt), (), generator=generator))
        shape = anchor.mean.shape[1:]
        draw = draw_noise(self.seed, step, [2 * i, 2 * i + 1], shape, self.num_timesteps)
        mean = torch.stack([anchor.mean[first], relearn.mean[second]])
        std = torch.stack([anchor.std[first], relearn.std[second]])
        pair, phrase = anchor.prompt[first], anchor.phrase[first]
        kept = relearn.states[relearn.prompt[second]]
        return {
            "latents": mean + std * draw.posterior_noise,  # (2, C, h, w): unlearn, relearn half
            "noise": draw.noise,
            "timesteps": draw.timesteps,
            "states": torch.stack([self.data.target_states[phrase, pair], kept]),
            "teacher_states": anchor.states[pair],
            "pair": pair,
            "seed": torch.randint(2**62, (), generator=generator),  # of what else a method draws
        }


class PairDataModule(L.LightningDataModule):
    """A data module whose one epoch is the whole run.

    The epoch has `steps` global batches, split over the ranks in order.
    """

    def __init__(
        self,
        data: TrainingData,
        steps: int,
        batch_size: int,
        seed: int,
        num_timesteps: int,
        accumulate_grad_batches: int = 1,
    ) -> None:
        super().__init__()
        self.data, self.steps, self.batch_size = data, steps, batch_size
        self.seed, self.num_timesteps, self.accumulate_grad_batches = (
            seed,
            num_timesteps,
            accumulate_grad_batches,
        )

    def train_dataloader(self) -> Iterable[dict[str, Tensor]]:
        """Return batches of `batch_size` a rank, changed as the method's `feed` changes them."""
        world = self.trainer.world_size if self.trainer else 1
        size = self.batch_size * world * self.accumulate_grad_batches
        dataset = PairDataset(self.data, self.steps, size, self.seed, self.num_timesteps)
        rank = self.trainer.global_rank if self.trainer else 0
        loader = ResumableLoader(dataset, self.batch_size, rank, world)
        method: Any = self.trainer.lightning_module if self.trainer else None
        return method.feed(loader) if method else loader
