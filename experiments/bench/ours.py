"""The package's own DoCo step, driven without a trainer."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from unlearn.methods.discriminator import PatchDiscriminator
from unlearn.methods.doco import DoCo, DoCoOptions
from unlearn.methods.gradients import Gradients
from unlearn.methods.manual_steps import Batch, Metrics, optimizer_step
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
        options = DoCoOptions(lr=1e-5, discriminator_lr=1e-5, accumulate_grad_batches=parts)
        schedule = NoiseSchedule.from_scheduler(pipe.scheduler)
        self.doco = DoCo(copy.deepcopy(pipe.unet), schedule, options).to(pipe.device)
        if gradient_checkpointing:
            self.doco.unet.enable_gradient_checkpointing()
        torch.manual_seed(0)  # the plain step's discriminator
        config = pipe.unet.config
        same = PatchDiscriminator(config.in_channels, config.sample_size)
        self.doco.discriminator.load_state_dict(same.state_dict())
        self.doco._trainer = SimpleNamespace(world_size=1)  # stands in for a Trainer
        self.optimizers = self.doco.configure_optimizers()
        self.for_weights, self.for_discriminator = self.optimizers
        self.networks = [self.doco]
        chunks = zip(*(batch[key].chunk(parts) for key in batch), strict=True)
        batches = [dict(zip(batch, chunk, strict=True)) for chunk in chunks]
        self.batches: Iterator[dict[str, Any]] = itertools.cycle(batches)
        if ahead > 1:
            self.batches = iter(
                TeacherAhead(
                    self.batches,
                    ahead,
                    lambda batch, _: self.doco.teacher_outputs(batch),
                    lambda batch: batch,
                )
            )

    @property
    def parameters(self) -> list[Any]:
        """Return the discriminator's parameters."""
        return list(self.doco.discriminator.parameters())

    def mean_gradients(self, gradients: Callable[[Batch], tuple[Gradients, Metrics]]) -> Gradients:
        """Return the mean of the gradients of a step's batches."""
        mean = None
        for number in range(1, self.doco.accumulate_grad_batches + 1):
            found, _ = gradients(next(self.batches))
            last = number == self.doco.accumulate_grad_batches
            mean = self.doco.mean_gradients(found, last=last)
        assert mean is not None
        return mean

    def warmup_step(self) -> None:
        """Make a step of the warm-up."""
        mean = self.mean_gradients(self.doco.warmup_gradients)
        optimizer_step(self.for_discriminator, self.parameters, mean.discriminator)

    def __call__(self) -> list[Tensor]:
        """Make one step; return g_u and g_r."""
        mean = self.mean_gradients(self.doco.gradients)
        self.doco.step(self.for_weights, mean.unlearn, mean.relearn)
        optimizer_step(self.for_discriminator, self.parameters, mean.discriminator)
        return [*mean.unlearn, *mean.relearn]
