"""DoCo: domain correction with a concept-preserving gradient (arXiv 2405.15304)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from unlearn.methods.base import Batch, Metrics, optimizer_step
from unlearn.methods.concept_preserving import ConceptPreserving
from unlearn.methods.discriminator import PatchDiscriminator
from unlearn.methods.losses import discriminator_loss, domain_correction_loss
from unlearn.models.noise_schedule import add_noise, predict_x0


class DoCo(ConceptPreserving):
    """Adversarial unlearning whose gradient never works against relearning.

    Args:
        discriminator_lr: learning rate of the discriminator (Adam 0.5, 0.999).
        warmup_steps: first steps, in which the discriminator alone trains.
        discriminator_input: "x0" (as the paper), or "scaled_x0", x̂0 times the share of x0 in z_t
            (√ᾱ; of a flow 1-σ), in which the noise that the prediction of an ε amplifies at high
            timesteps (15 times at the last one) stays bounded.
        discriminator_channels: channels of the discriminator's first block.
        options: lr, strength, granularity, surgery, relearn_target, lr_schedule, weight_decay,
            start, contexts, detach_first_token, accumulate_grad_batches: see `ConceptPreserving`.

    Raises:
        ValueError: an option has none of its allowed values.
    """

    CHOICES: ClassVar[dict[str, tuple[str, ...]]] = {
        **ConceptPreserving.CHOICES,
        "discriminator_input": ("x0", "scaled_x0"),
    }
    POSITIVE = (*ConceptPreserving.POSITIVE, "discriminator_channels")

    def __init__(
        self,
        *args: Any,
        discriminator_lr: float = 5e-4,
        warmup_steps: int = 100,
        discriminator_input: str = "x0",
        discriminator_channels: int = 64,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        self.discriminator = self.build_discriminator()

    def build_discriminator(self) -> PatchDiscriminator:
        """D, for latents of the network's size."""
        config, width = self.network.config, self.hparams.discriminator_channels
        return PatchDiscriminator(config.in_channels, config.sample_size, width)

    def configure_optimizers(self) -> Any:
        """AdamW for the keys and values, Adam for the discriminator."""
        critic = torch.optim.Adam(
            self.discriminator.parameters(), self.hparams.discriminator_lr, betas=(0.5, 0.999)
        )
        return super().configure_optimizers(), critic

    @classmethod
    def warmup_length(cls, options: Any) -> int:
        """`warmup_steps`."""
        return int(options.warmup_steps)

    def in_warmup(self, step: int) -> bool:
        """Whether the discriminator alone trains at this step."""
        return step < self.warmup_length(self.hparams)

    def relearns(self, step: int) -> bool:
        """Not in the warm-up."""
        return not self.in_warmup(step)

    def views(
        self, teacher: Tensor, student: Tensor, z_t: Tensor, timesteps: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What the discriminator sees of the two outputs, real and fake, (B, C, h, w) each."""
        at = (z_t, timesteps, self.schedule)
        real, fake = (predict_x0(output, *at) for output in (teacher, student))
        if self.hparams.discriminator_input == "x0":
            return real, fake
        signal, _ = self.schedule.at(timesteps, z_t.ndim)
        return signal * real, signal * fake

    def warmup_gradients(self, batch: Batch) -> tuple[list[Tensor], Metrics]:
        """g_D and metrics, with no graph through the network and no relearn half."""
        latents, noise, timesteps = (batch[k][:, 0] for k in ("latents", "noise", "timesteps"))
        z_t = add_noise(latents, noise, timesteps, self.schedule)
        taught = batch["taught"] if "taught" in batch else self.teach(batch, False)
        with torch.no_grad():
            student = self.output(z_t, timesteps, batch["states"][:, 0])
        return self.critic_gradients(*self.views(taught[:, 0], student, z_t, timesteps))

    def judge(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """D's logits of both, from one pass."""
        logits_real, logits_fake = self.discriminator(torch.cat([real, fake])).chunk(2)
        return logits_real, logits_fake

    def critic_gradients(self, real: Tensor, fake: Tensor) -> tuple[list[Tensor], Metrics]:
        """g_D of L_D = BCE(D(real), 0) + BCE(D(sg fake), 1), and metrics."""
        logits_real, logits_fake = self.judge(real, fake.detach())
        loss = discriminator_loss(logits_real, logits_fake)
        metrics = {
            "discriminator_loss": loss.detach(),
            "discriminator/real_accuracy": (logits_real < 0).float().mean(),
            "discriminator/fake_accuracy": (logits_fake > 0).float().mean(),
            "discriminator/pair_accuracy": (logits_fake > logits_real).float().mean(),
        }
        return list(torch.autograd.grad(loss, list(self.discriminator.parameters()))), metrics

    def joint_critic_gradients(self, real: Tensor, fake: Tensor) -> tuple[list[Tensor], Metrics]:
        """g_D in a step that also unlearns: L_u plays no part in it."""
        return self.critic_gradients(real, fake)

    def unlearn(
        self, output: Tensor, teacher: Tensor, z_t: Tensor, timesteps: Tensor
    ) -> tuple[Tensor, list[Tensor], Metrics]:
        """L_u = BCE(D(fake), 0), g_D of the same D, and D's metrics."""
        real, fake = self.views(teacher, output, z_t, timesteps)
        loss = domain_correction_loss(self.discriminator(fake))
        return loss, *self.joint_critic_gradients(real, fake)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """The gradients of one batch; after the step's last batch, the step.

        In the warm-up that is a step of the discriminator alone.
        """
        step, number = divmod(batch_idx, self.accumulate_grad_batches)
        moved: list[Tensor] = []  # g_u and g_r
        if self.in_warmup(step):
            g_d, metrics = self.warmup_gradients(batch)
        else:
            g_u, g_r, g_d, metrics = self.gradients(batch)
            moved = [*g_u, *g_r]
        self.check_losses(metrics, batch, step)
        last = number == self.accumulate_grad_batches - 1
        metrics = self.mean_metrics(metrics, last)
        if mean := self.mean_gradients([*moved, *g_d], last):
            generator, critic = self.optimizers()  # type: ignore[misc]
            if moved:
                first = self.warmup_length(self.hparams)
                metrics |= self.update(generator, mean, step - first)
            optimizer_step(critic, list(self.discriminator.parameters()), mean[len(moved) :])
            self.log_step(metrics, step, "discriminator_loss")
