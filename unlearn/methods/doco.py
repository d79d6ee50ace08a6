"""DoCo: domain correction with a concept-preserving gradient (arXiv 2405.15304)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from unlearn.methods.concept_preserving import ConceptPreserving
from unlearn.methods.concept_preserving_options import ConceptPreservingOptions
from unlearn.methods.discriminator import PatchDiscriminator
from unlearn.methods.gradients import Gradients
from unlearn.methods.losses import discriminator_loss, domain_correction_loss
from unlearn.methods.manual_steps import Batch, Metrics, optimizer_step
from unlearn.methods.options import MethodOptions
from unlearn.models.noise_schedule import NoiseSchedule, add_noise, predict_x0
from unlearn.utils.options import option


@dataclass(frozen=True, kw_only=True)
class DoCoOptions(ConceptPreservingOptions):
    """Hold the options of `DoCo`."""

    discriminator_lr: float = option(
        5e-4, at_least=0, help="learning rate of the discriminator (Adam 0.5, 0.999)", at_most=100
    )
    warmup_steps: int = option(
        100, at_least=0, help="first steps, in which the discriminator alone trains", at_most=10**8
    )
    discriminator_input: str = option(
        "x0",
        choices=("x0", "scaled_x0"),
        help="what the discriminator sees: x̂0 (as the paper), or x̂0 times the share of x0 in z_t",
    )
    discriminator_channels: int = option(
        64, at_least=1, help="channels of the discriminator's first block", at_most=1024
    )


class DoCo(ConceptPreserving):
    """Unlearn against a discriminator, with a gradient that never works against relearning.

    The discriminator D tells the base model's anchor from the trained model's target. Where D sees
    x̂0 times the share of x0 in z_t (√ᾱ; of a flow 1-σ), the noise in x̂0 stays bounded. At the last
    timestep, the prediction of an ε amplifies that noise 15 times.

    Raises:
        ValueError: an option has none of its allowed values, or the network has no closed-form
            start.

    Source: DoCo (arXiv 2405.15304).
    """

    Options: ClassVar[type[MethodOptions]] = DoCoOptions
    options: DoCoOptions

    def __init__(self, network: nn.Module, schedule: NoiseSchedule, options: MethodOptions) -> None:
        super().__init__(network, schedule, options)
        self.discriminator = self.build_discriminator()

    def build_discriminator(self) -> PatchDiscriminator:
        """Return D, for latents of the network's size."""
        config, width = self.network.config, self.options.discriminator_channels
        return PatchDiscriminator(config.in_channels, config.sample_size, width)

    def configure_optimizers(self) -> Any:
        """Return AdamW for the keys and values, and Adam for the discriminator."""
        for_discriminator = torch.optim.Adam(
            self.discriminator.parameters(), self.options.discriminator_lr, betas=(0.5, 0.999)
        )
        return super().configure_optimizers(), for_discriminator

    @classmethod
    def warmup_length(cls, options: Any) -> int:
        """Return in how many first steps the discriminator alone trains."""
        return int(options.warmup_steps)

    def in_warmup(self, step: int) -> bool:
        """Return whether the discriminator alone trains at a step."""
        return step < self.warmup_length(self.options)

    def relearns(self, step: int) -> bool:
        """Return whether the relearn half plays a part at a step: in all but the warm-up."""
        return not self.in_warmup(step)

    def views(
        self, teacher: Tensor, student: Tensor, z_t: Tensor, timesteps: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return what the discriminator sees of the two outputs: real and fake.

        Args:
            teacher: the base model's output for the anchor prompts, (B, C, h, w).
            student: the trained model's output for the target prompts, (B, C, h, w).
            z_t: the noisy latents of both, (B, C, h, w).
            timesteps: the timesteps of the latents, (B,).

        Returns:
            Two tensors (B, C, h, w).
        """
        at = (z_t, timesteps, self.schedule)
        real, fake = (predict_x0(output, *at) for output in (teacher, student))
        if self.options.discriminator_input == "x0":
            return real, fake
        signal, _ = self.schedule.at(timesteps, z_t.ndim)
        return signal * real, signal * fake

    def warmup_gradients(self, batch: Batch) -> tuple[Gradients, Metrics]:
        """Return g_D alone and metrics of a batch, as a step of the warm-up needs them.

        No graph goes through the network, and the relearn half plays no part.
        """
        latents, noise, timesteps = (batch[k][:, 0] for k in ("latents", "noise", "timesteps"))
        z_t = add_noise(latents, noise, timesteps, self.schedule)
        teacher = (
            batch["teacher_outputs"]
            if "teacher_outputs" in batch
            else self.teacher_outputs(batch, relearns=False)
        )
        with torch.no_grad():
            student = self.output(z_t, timesteps, batch["states"][:, 0])
        views = self.views(teacher[:, 0], student, z_t, timesteps)
        g_d, metrics = self.discriminator_gradients(*views)
        return Gradients(discriminator=g_d), metrics

    def discriminator_logits(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """Return D's logits (B, 1, m, m) of real and of fake, from one pass over both."""
        real_logits, fake_logits = self.discriminator(torch.cat([real, fake])).chunk(2)
        return real_logits, fake_logits

    def discriminator_gradients(self, real: Tensor, fake: Tensor) -> tuple[list[Tensor], Metrics]:
        """Return g_D of L_D = BCE(D(real), 0) + BCE(D(sg fake), 1), and metrics.

        Args:
            real: what D sees of the base model's output for the anchor prompts, (B, C, h, w).
            fake: what D sees of the trained model's output for the target prompts, (B, C, h, w).
        """
        real_logits, fake_logits = self.discriminator_logits(real, fake.detach())
        loss = discriminator_loss(real_logits, fake_logits)
        metrics = {
            "loss/discriminator": loss.detach(),
            "discriminator/real_accuracy": (real_logits < 0).float().mean(),
            "discriminator/fake_accuracy": (fake_logits > 0).float().mean(),
            "discriminator/pair_accuracy": (fake_logits > real_logits).float().mean(),
        }
        return list(torch.autograd.grad(loss, list(self.discriminator.parameters()))), metrics

    def joint_discriminator_gradients(
        self, real: Tensor, fake: Tensor
    ) -> tuple[list[Tensor], Metrics]:
        """Return g_D and metrics in a step that also unlearns; L_u plays no part in g_D."""
        return self.discriminator_gradients(real, fake)

    def unlearn(
        self, output: Tensor, teacher: Tensor, z_t: Tensor, timesteps: Tensor
    ) -> tuple[Tensor, list[Tensor], Metrics]:
        """Return L_u = BCE(D(fake), 0), g_D of the same D, and D's metrics."""
        real, fake = self.views(teacher, output, z_t, timesteps)
        loss = domain_correction_loss(self.discriminator(fake))
        return loss, *self.joint_discriminator_gradients(real, fake)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Add the gradients of one batch; after the step's last batch, make the step.

        A step of the warm-up moves the discriminator alone.
        """
        step, number = divmod(batch_idx, self.accumulate_grad_batches)
        warmup = self.in_warmup(step)
        gradients, metrics = self.warmup_gradients(batch) if warmup else self.gradients(batch)
        self.check_losses(metrics, batch, step)
        last = number == self.accumulate_grad_batches - 1
        metrics = self.mean_metrics(metrics, last)
        mean = self.mean_gradients(gradients, last)
        if mean is not None:
            for_weights, for_discriminator = self.optimizers()  # type: ignore[misc]
            if not warmup:
                first = self.warmup_length(self.options)
                metrics |= self.update(for_weights, mean, step - first)
            parameters = list(self.discriminator.parameters())
            optimizer_step(for_discriminator, parameters, mean.discriminator)
            self.log_step(metrics, step, "loss/discriminator")
