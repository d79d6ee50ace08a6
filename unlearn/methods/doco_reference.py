"""DoCo with the arithmetic of its public reference implementation, quirk by quirk."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from unlearn.methods.base import Metrics, optimizer_step
from unlearn.methods.concept_preserving import RELEARN_WEIGHT
from unlearn.methods.discriminator import PatchDiscriminator
from unlearn.methods.doco import DoCo
from unlearn.methods.losses import domain_correction_loss
from unlearn.methods.surgery import SurgeryStats, clip_to_norm, project_reference


class DoCoReference(DoCo):
    """What the reference does where `DoCo` differs, to compare with published runs.

    - D has BatchNorm, with a pass of its own for real and for fake. Its statistics are a rank's:
      under DDP this is not one process at the same global batch.
    - D's step follows the gradient of L_u + L_D: the backward pass of L_u also reaches D.
    - Surgery subtracts λ cos(g_u, g_r) ĝ_r, without the factor ‖g_u‖, so it over-corrects.
    - D alone trains for `warmup_steps` + 1 steps.
    - Relearning regresses to ε, whatever the model predicts.
    - The first text token's key and value get no gradient; the learning rate is constant.
    - Without surgery (`weighted_sum`) the one loss is L_u + 0.1 L_r, its gradient clipped once.

    Args:
        surgery: "gradient" or "weighted_sum".
        strength: λ.
        options: lr, discriminator_lr, warmup_steps, weight_decay, discriminator_channels,
            accumulate_grad_batches: see `DoCo`.

    Raises:
        ValueError: an option is not one of the reference's.

    Source: the behaviour of the reference implementation of DoCo (arXiv 2405.15304).
    """

    LACKS = ("granularity", "relearn_target", "lr_schedule", "start", "contexts",
             "discriminator_input", "detach_first_token")  # fmt: skip
    CHOICES: ClassVar[dict[str, tuple[str, ...]]] = {
        **DoCo.CHOICES,
        "surgery": ("gradient", "weighted_sum"),
    }

    def __init__(self, *args: Any, surgery: str = "gradient", **options: Any) -> None:
        for key in self.LACKS:
            if key in options:
                raise ValueError(f"method.{key}={options[key]!r}: the reference has no such option")
        super().__init__(*args, surgery=surgery, detach_first_token=True, **options)

    def build_discriminator(self) -> PatchDiscriminator:
        """D with BatchNorm."""
        config, width = self.network.config, self.hparams.discriminator_channels
        return PatchDiscriminator(config.in_channels, config.sample_size, width, norm="batch")

    def judge(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """Each with the batch statistics of its own pass."""
        return self.discriminator(real), self.discriminator(fake)

    @classmethod
    def warmup_length(cls, options: Any) -> int:
        """One step more than `warmup_steps`."""
        return super().warmup_length(options) + 1

    def relearn_targets(
        self, taught: Tensor, latents: Tensor, noise: Tensor, timesteps: Tensor
    ) -> Tensor:
        """ε, for v models too."""
        return noise

    def joint_critic_gradients(self, real: Tensor, fake: Tensor) -> tuple[list[Tensor], Metrics]:
        """The gradient of L_u + L_D."""
        g_d, metrics = super().joint_critic_gradients(real, fake)
        leaked = torch.autograd.grad(
            domain_correction_loss(self.discriminator(fake.detach())),
            list(self.discriminator.parameters()),
        )
        return [a + b for a, b in zip(g_d, leaked, strict=True)], metrics

    def project(self, u: list[Tensor], r: list[Tensor]) -> tuple[list[Tensor], SurgeryStats]:
        """u less λ cos(u, r) r/‖r‖ in every tensor where the two conflict."""
        return project_reference(u, r, self.hparams.strength)

    def step(self, optimizer: Any, g_u: list[Tensor], g_r: list[Tensor]) -> Metrics:
        """As DoCo's; without surgery the joint gradient is clipped once."""
        if self.hparams.surgery == "gradient":
            return super().step(optimizer, g_u, g_r)
        joint = [u + RELEARN_WEIGHT * r for u, r in zip(g_u, g_r, strict=True)]
        joint, norm = clip_to_norm(joint, 1.0)
        optimizer_step(optimizer, self.weights, joint)
        return {"norm/joint": norm}
