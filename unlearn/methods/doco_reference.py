"""DoCo with the arithmetic of its public reference implementation, quirk by quirk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from unlearn.methods.concept_preserving import RELEARN_WEIGHT
from unlearn.methods.discriminator import PatchDiscriminator
from unlearn.methods.doco import DoCo
from unlearn.methods.losses import domain_correction_loss
from unlearn.methods.manual_steps import Metrics, optimizer_step
from unlearn.methods.options import MethodOptions, TrainingOptions
from unlearn.methods.surgery import SurgeryStats, clip_to_norm, project_reference
from unlearn.utils.options import option


@dataclass(frozen=True, kw_only=True)
class DoCoReferenceOptions(TrainingOptions):
    """Hold the options of `DoCoReference`; the class attributes are DoCo's that it does not have.

    The class attributes are no fields, so a configuration cannot set them.
    """

    granularity: ClassVar[str] = "tensor"
    relearn_target: ClassVar[str] = "noise"
    lr_schedule: ClassVar[str] = "constant"
    start: ClassVar[str] = "base"
    contexts: ClassVar[int] = 0
    detach_first_token: ClassVar[bool] = True
    discriminator_input: ClassVar[str] = "x0"

    lr: float = option(
        1e-4, at_least=0, help="learning rate of the keys and values (AdamW)", at_most=100
    )
    discriminator_lr: float = option(
        5e-4, at_least=0, help="learning rate of the discriminator (Adam 0.5, 0.999)", at_most=100
    )
    warmup_steps: int = option(
        100,
        at_least=0,
        help="first steps, and one more, in which the discriminator alone trains",
        at_most=10**8,
    )
    strength: float = option(1.0, at_least=0, help="λ of the surgery", at_most=1000)
    surgery: str = option(
        "gradient",
        choices=("gradient", "weighted_sum"),
        help="correct the gradient, or train on the one loss L_u + 0.1 L_r",
    )
    weight_decay: float = option(1e-2, at_least=0, help="weight decay of AdamW", at_most=100)
    discriminator_channels: int = option(
        64, at_least=1, help="channels of the discriminator's first block", at_most=1024
    )


class DoCoReference(DoCo):
    """Do what the reference does where `DoCo` differs, to compare with published runs.

    - D has BatchNorm, with a pass of its own for real and for fake. Its statistics are a rank's:
      under DDP this is not one process at the same global batch.
    - D's step follows the gradient of L_u + L_D: the backward pass of L_u also reaches D.
    - Surgery subtracts λ cos(g_u, g_r) ĝ_r, without the factor ‖g_u‖, so it over-corrects.
    - D alone trains for `warmup_steps` + 1 steps.
    - Relearning regresses to ε, whatever the model predicts.
    - The first text token's key and value get no gradient; the learning rate is constant.
    - Without surgery (`weighted_sum`) the one loss is L_u + 0.1 L_r, its gradient clipped once.

    Raises:
        ValueError: an option has none of its allowed values.

    Source: the behaviour of the reference implementation of DoCo (arXiv 2405.15304).
    """

    Options: ClassVar[type[MethodOptions]] = DoCoReferenceOptions
    options: Any  # a DoCoReferenceOptions, which has every attribute of DoCo's options

    def build_discriminator(self) -> PatchDiscriminator:
        """Return D with BatchNorm, for latents of the network's size."""
        config, width = self.network.config, self.options.discriminator_channels
        return PatchDiscriminator(config.in_channels, config.sample_size, width, norm="batch")

    def discriminator_logits(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """Return D's logits of real and of fake, each with the batch statistics of its own pass."""
        return self.discriminator(real), self.discriminator(fake)

    @classmethod
    def warmup_length(cls, options: Any) -> int:
        """Return one step more than `warmup_steps`."""
        return super().warmup_length(options) + 1

    def relearn_targets(
        self, teacher_outputs: Tensor, latents: Tensor, noise: Tensor, timesteps: Tensor
    ) -> Tensor:
        """Return ε, which is no training target of a model that predicts v."""
        return noise

    def joint_discriminator_gradients(
        self, real: Tensor, fake: Tensor
    ) -> tuple[list[Tensor], Metrics]:
        """Return the gradient of L_u + L_D in D, and D's metrics."""
        g_d, metrics = super().joint_discriminator_gradients(real, fake)
        leaked = torch.autograd.grad(
            domain_correction_loss(self.discriminator(fake.detach())),
            list(self.discriminator.parameters()),
        )
        return [a + b for a, b in zip(g_d, leaked, strict=True)], metrics

    def project(
        self, u: Sequence[Tensor], r: Sequence[Tensor]
    ) -> tuple[list[Tensor], SurgeryStats]:
        """Return u less λ cos(u, r) r/‖r‖ in every tensor where the two conflict."""
        return project_reference(u, r, self.options.strength)

    def step(self, optimizer: Any, unlearn: Sequence[Tensor], relearn: Sequence[Tensor]) -> Metrics:
        """Move θ as DoCo does; without surgery, clip the gradient of the one loss once."""
        if self.options.surgery == "gradient":
            return super().step(optimizer, unlearn, relearn)
        joint = [u + RELEARN_WEIGHT * r for u, r in zip(unlearn, relearn, strict=True)]
        joint, norm = clip_to_norm(joint, 1.0)
        optimizer_step(optimizer, self.weights, joint)
        return {"norm/joint": norm}
