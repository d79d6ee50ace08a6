"""The package's own DoCo step, driven without a trainer."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from unlearn.methods.base import optimizer_step
from unlearn.methods.discriminator import PatchDiscriminator
from unlearn.methods.doco import DoCo
from unlearn.methods.teacher_ahead import TeacherAhead
from unlearn.models.noise_schedule import NoiseSchedule


class OurStep:
    """The package's step, with the paper's choices, which the plain step has too.

    Attributes:
        networks, optimizers: all that the step needs.

    Args:
        pipe: the base pipeline.
        batch: see `make_batch`; every step's.
        ahead: batches that the teacher takes at once.
        parts: the batch is taken in so many parts.
        gradient_checkpointing: activations are computed twice.
    """

    def __init__(
        self,
        pipe: StableDiffusionPipeline,
        batch: dict[str, Any],
        ahead: int = 1,
        parts: int = 1,
        gradient_checkpointing: bool = False,
    ) -> None:
        self.doco = DoCo(
            copy.deepcopy(pipe.unet), NoiseSchedule.of(pipe.scheduler),
            lr=1e-5, discriminator_lr=1e-5, accumulate_grad_batches=parts,
        ).to(pipe.device)  # fmt: skip
        if gradient_checkpointing:
            self.doco.unet.enable_gradient_checkpointing()
        torch.manual_seed(0)  # the plain step's discriminator
        config = pipe.unet.config
        same = PatchDiscriminator(config.in_channels, config.sample_size)
        self.doco.discriminator.load_state_dict(same.state_dict())
        self.doco._trainer = SimpleNamespace(world_size=1)  # stands in for a Trainer
        self.optimizer, self.critic = self.optimizers = self.doco.configure_optimizers()
        self.networks = [self.doco]
        chunks = zip(*(batch[key].chunk(parts) for key in batch), strict=True)
        batches = [dict(zip(batch, chunk, strict=True)) for chunk in chunks]
        self.batches: Iterator[dict[str, Any]] = itertools.cycle(batches)
        if ahead > 1:
            teach = lambda batch, _: self.doco.teach(batch)  # noqa: E731
            self.batches = iter(TeacherAhead(self.batches, ahead, teach, lambda moved: moved))

    @property
    def parameters(self) -> list[Any]:
        """D's."""
        return list(self.doco.discriminator.parameters())

    def warmup_steps(self) -> None:
        """A step of the warm-up."""
        for number in range(1, self.doco.accumulate_grad_batches + 1):
            g_d, _ = self.doco.warmup_gradients(next(self.batches))
            mean = self.doco.mean_gradients(g_d, last=number == self.doco.accumulate_grad_batches)
        optimizer_step(self.critic, self.parameters, mean)

    def __call__(self) -> list[Tensor]:
        """One step; returns g_u and g_r."""
        for number in range(1, self.doco.accumulate_grad_batches + 1):
            g_u, g_r, g_d, _ = self.doco.gradients(next(self.batches))
            last = number == self.doco.accumulate_grad_batches
            mean = self.doco.mean_gradients([*g_u, *g_r, *g_d], last=last)
        count = len(g_u)
        self.doco.step(self.optimizer, mean[:count], mean[count : 2 * count])
        optimizer_step(self.critic, self.parameters, mean[2 * count :])
        return mean[: 2 * count]
