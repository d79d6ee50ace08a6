"""DoCo: domain correction with a concept-preserving gradient (arXiv 2405.15304)."""

from __future__ import annotations

import math
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from unlearn.backbone import applying, split_cross_attention
from unlearn.concepts import check
from unlearn.diffusion import add_noise, noise_target, predict_noise, predict_x0
from unlearn.discriminator import PatchDiscriminator
from unlearn.losses import (
    discriminator_loss,
    domain_correction_loss,
    gradient_penalty,
    relearn_loss,
)
from unlearn.methods.base import Batch, Metrics, UnlearningModule, step_with
from unlearn.surgery import GRANULARITIES, SurgeryStats, clip_to_norm, project

CHOICES = {
    "surgery": ("gradient", "update", "unlearn_only", "sum", "weighted_sum"),
    "relearn_target": ("noise", "teacher"),
    "granularity": GRANULARITIES,
    "lr_schedule": ("constant", "cosine"),
    "discriminator_input": ("x0", "scaled_x0", "x0_and_noise"),
    "timestep_weighting": ("uniform", "signal"),
}
RELEARN_WEIGHT = 0.1  # of the reference's loss without surgery


class DoCo(UnlearningModule):
    """Adversarial unlearning whose gradient never works against relearning.

    One forward pass holds the unlearn half and the relearn half; each goes through its own leaf
    of the key and value weights, so one backward pass gives both gradients exactly. The teacher
    is the same network with the original weights.

    Args:
        unet: the base network; its cross-attention keys and values are replaced and trained.
        alphas_cumprod: ᾱ of the noise schedule (T,).
        prediction_type: "epsilon" or "v_prediction".
        lr: learning rate of the keys and values (AdamW).
        discriminator_lr: learning rate of the discriminator (Adam 0.5, 0.999).
        warm_up: first steps, in which the discriminator alone trains.
        strength: λ of the projection.
        granularity: "tensor", "layer" or "network".
        surgery: "gradient" projects g_u before AdamW, as the paper; "update" projects AdamW's step
            for g_u, so that the step itself cannot work against g_r; "unlearn_only" (g_u), "sum"
            (g_u + g_r) and "weighted_sum" (g_u + 0.1 g_r, the reference without surgery) project
            nothing.
        relearn_target: "noise" (the training target) or "teacher" (the frozen model's output).
        lr_schedule: "constant" (as the paper) or "cosine", which decays `lr` to zero and so damps
            the last oscillations of the adversarial game.
        discriminator_input: "x0" (as the paper); "scaled_x0", √ᾱ x̂0, in which the noise that the
            prediction amplifies at high timesteps (15 times at the last one) stays bounded; or
            "x0_and_noise", x̂0 at unit scale beside ε̂, which shows what differs at low timesteps,
            where both x̂0 are nearly the image itself.
        timestep_weighting: "uniform" (as the paper), or "signal": L_u of a sample counts √ᾱ times.
            x̂0 turns a change of the output into one 1/√ᾱ times as large, so high timesteps would
            make up nearly all of the uniform gradient, and low ones would hardly be unlearned.
        paired: D compares the two outputs of one z_t (a relativistic loss) instead of judging
            each alone (as the paper): they differ far less than images do among themselves.
        gradient_penalty: γ of D's penalty on its slopes, on real and on fake; 0 as the paper.
        weight_decay: of AdamW.
        discriminator_channels: channels of the discriminator's first block.
        detach_first_token: take the first text token's key and value from the weights without
            gradient, as the reference implementation does.
        accumulate: batches a step; their gradients are averaged before the one collective.

    Raises:
        ValueError: an option has none of its allowed values.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        alphas_cumprod: Tensor,
        prediction_type: str = "epsilon",
        *,
        lr: float = 1e-4,
        discriminator_lr: float = 5e-4,
        warm_up: int = 100,
        strength: float = 1.0,
        granularity: str = "tensor",
        surgery: str = "gradient",
        relearn_target: str = "noise",
        lr_schedule: str = "constant",
        discriminator_input: str = "x0",
        timestep_weighting: str = "uniform",
        paired: bool = False,
        gradient_penalty: float = 0.0,
        weight_decay: float = 1e-2,
        discriminator_channels: int = 64,
        detach_first_token: bool = False,
        accumulate: int = 1,
    ) -> None:
        self.detach_first_token = detach_first_token
        super().__init__(unet, alphas_cumprod, prediction_type, accumulate)
        self.save_hyperparameters(ignore=["unet", "alphas_cumprod", "prediction_type"])
        for key, allowed in CHOICES.items():
            check(f"method.{key}", self.hparams[key], allowed)
        self.discriminator = self.build_discriminator()

    def choose_weights(self) -> dict[str, Tensor]:
        """Cross-attention keys and values, whose layers take a weight a half of the batch."""
        layers = split_cross_attention(self.unet, self.detach_first_token)
        self.split_layers = list(layers.values())
        return {f"{name}.weight": layer.weight for name, layer in layers.items()}

    def build_discriminator(self) -> PatchDiscriminator:
        """D, for latents of the UNet's size; twice the channels where it sees the noise too."""
        size, channels = self.unet.config.sample_size, self.unet.config.in_channels
        both = self.hparams.discriminator_input == "x0_and_noise"
        width = self.hparams.discriminator_channels
        return PatchDiscriminator(channels * (2 if both else 1), size, width)

    def configure_optimizers(self) -> Any:
        """AdamW for the keys and values, Adam for the discriminator."""
        hp = self.hparams
        generator = torch.optim.AdamW(self.weights, hp.lr, weight_decay=hp.weight_decay)
        critic = torch.optim.Adam(
            self.discriminator.parameters(), hp.discriminator_lr, betas=(0.5, 0.999)
        )
        return generator, critic

    def in_warm_up(self, step: int) -> bool:
        """Whether the discriminator alone trains at this step."""
        return step < self.hparams.warm_up

    def views(
        self, teacher: Tensor, student: Tensor, z_t: Tensor, timesteps: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What the discriminator sees of the two outputs: real and fake.

        x̂0 or √ᾱ x̂0 (B, C, h, w); or (B, 2C, h, w), both x̂0 divided by the standard deviation of
        the teacher's, so that every timestep has one scale, beside ε̂.
        """
        schedule = (z_t, timesteps, self.alphas_cumprod, self.prediction_type)
        real, fake = (predict_x0(output, *schedule) for output in (teacher, student))
        if self.hparams.discriminator_input == "x0":
            return real, fake
        if self.hparams.discriminator_input == "scaled_x0":
            signal = self.alphas_cumprod[timesteps].sqrt()[:, None, None, None]
            return signal * real, signal * fake
        scale = real.flatten(1).std(dim=1)[:, None, None, None]
        noises = (predict_noise(output, *schedule) for output in (teacher, student))
        return tuple(  # type: ignore[return-value]
            torch.cat([x0 / scale, noise], 1)
            for x0, noise in zip((real, fake), noises, strict=True)
        )

    def warm_up_gradients(self, batch: Batch) -> tuple[list[Tensor], Metrics]:
        """g_D and metrics, with no graph through the UNet and no relearn half."""
        latents, noise, timesteps = (batch[k][:, 0] for k in ("latents", "noise", "timesteps"))
        z_t = add_noise(latents, noise, timesteps, self.alphas_cumprod)
        teacher = self.teacher(z_t, timesteps, batch["teacher_states"])
        with torch.no_grad():
            student = self.unet(z_t, timesteps, batch["states"][:, 0]).sample
        return self.critic_gradients(*self.views(teacher, student, z_t, timesteps))

    def critic_gradients(self, real: Tensor, fake: Tensor) -> tuple[list[Tensor], Metrics]:
        """g_D of L_D = BCE(D(real), 0) + BCE(D(sg fake), 1), or of its form for pairs; metrics.

        With `gradient_penalty` γ, of L_D + γ (R1 + R2).
        """
        penalty, fake = self.hparams.gradient_penalty, fake.detach()
        for side in (real, fake):
            side.requires_grad_(bool(penalty))
        logits_real, logits_fake = self.discriminator(real), self.discriminator(fake)
        loss = discriminator_loss(logits_real, logits_fake, self.hparams.paired)
        metrics = {
            "discriminator_loss": loss.detach(),
            "discriminator/real_accuracy": (logits_real < 0).float().mean(),
            "discriminator/fake_accuracy": (logits_fake > 0).float().mean(),
            "discriminator/pair_accuracy": (logits_fake > logits_real).float().mean(),
        }
        if penalty:
            slopes = gradient_penalty(logits_real, real) + gradient_penalty(logits_fake, fake)
            metrics["discriminator/gradient_penalty"] = slopes.detach()
            loss = loss + penalty * slopes
        return list(torch.autograd.grad(loss, list(self.discriminator.parameters()))), metrics

    def joint_critic_gradients(self, real: Tensor, fake: Tensor) -> tuple[list[Tensor], Metrics]:
        """g_D in a step that also unlearns: L_u plays no part in it."""
        return self.critic_gradients(real, fake)

    def sample_weights(self, timesteps: Tensor) -> Tensor | None:
        """What each sample of L_u counts (B,); None: all the same."""
        if self.hparams.timestep_weighting == "uniform":
            return None
        return self.alphas_cumprod[timesteps].sqrt()

    def relearn_targets(
        self, latents: Tensor, noise: Tensor, z_t: Tensor, timesteps: Tensor, states: Tensor
    ) -> Tensor:
        """What the relearn half should output (B, C, h, w)."""
        if self.hparams.relearn_target == "teacher":
            return self.teacher(z_t, timesteps, states)
        kind = self.prediction_type
        return noise_target(latents, noise, timesteps, self.alphas_cumprod, kind)

    def gradients(self, batch: Batch) -> tuple[list[Tensor], list[Tensor], list[Tensor], Metrics]:
        """g_u, g_r, g_D and metrics, all from one forward pass with the same θ and D.

        Args:
            batch: see `PairDataset`; halves on dimension 1.
        """
        latents, noise, timesteps, states = (
            torch.cat([batch[k][:, 0], batch[k][:, 1]])
            for k in ("latents", "noise", "timesteps", "states")
        )
        size = len(batch["latents"])
        z_t = add_noise(latents, noise, timesteps, self.alphas_cumprod)
        leaves = [[w.detach().requires_grad_() for w in self.weights] for _ in range(2)]
        with applying(self.split_layers, leaves):
            output = self.unet(z_t, timesteps, states).sample
        teacher = self.teacher(z_t[:size], timesteps[:size], batch["teacher_states"])
        real, fake = self.views(teacher, output[:size], z_t[:size], timesteps[:size])
        with torch.no_grad():
            logits_real = self.discriminator(real) if self.hparams.paired else None
        unlearn = domain_correction_loss(
            self.discriminator(fake), logits_real, self.sample_weights(timesteps[:size])
        )
        kept = (x[size:] for x in (latents, noise, z_t, timesteps, states))
        relearn = relearn_loss(output[size:], self.relearn_targets(*kept))
        both = torch.autograd.grad(unlearn + relearn, [*leaves[0], *leaves[1]])
        g_d, metrics = self.joint_critic_gradients(real, fake)
        metrics |= {"unlearn_loss": unlearn.detach(), "relearn_loss": relearn.detach()}
        return list(both[: len(leaves[0])]), list(both[len(leaves[0]) :]), g_d, metrics

    def project(self, u: list[Tensor], r: list[Tensor]) -> tuple[list[Tensor], SurgeryStats]:
        """u without its component against r, at the strength and granularity of this run."""
        layers = [i // 2 for i in range(len(u))]
        return project(
            u, r, strength=self.hparams.strength, granularity=self.hparams.granularity,
            layers=layers,
        )  # fmt: skip

    def combine(self, g_u: list[Tensor], g_r: list[Tensor]) -> tuple[list[Tensor], SurgeryStats]:
        """The gradient that AdamW gets, of g_u and g_r clipped to norm 1 each."""
        projected, stats = self.project(g_u, g_r)
        if self.hparams.surgery == "gradient":
            return projected, stats
        weight = {"sum": 1.0, "weighted_sum": RELEARN_WEIGHT}.get(self.hparams.surgery, 0.0)
        return [u + weight * r for u, r in zip(g_u, g_r, strict=True)], stats

    def step(self, optimizer: Any, g_u: list[Tensor], g_r: list[Tensor]) -> Metrics:
        """Move θ: clip each gradient to norm 1, combine them, and step; returns metrics."""
        g_u, norm_u = clip_to_norm(g_u, 1.0)
        g_r, norm_r = clip_to_norm(g_r, 1.0)
        before = [w.detach().clone() for w in self.weights]
        gradient, stats = self.combine(g_u, g_r)
        step_with(optimizer, self.weights, gradient)
        # what θ lost in this step: the direction that descends, as a gradient does
        update = [b - w.detach() for b, w in zip(before, self.weights, strict=True)]
        kept, update_stats = self.project(update, g_r)
        if self.hparams.surgery == "update":
            with torch.no_grad():
                for weight, old, move in zip(self.weights, before, kept, strict=True):
                    weight.copy_(old - move)
            stats = update_stats
        metrics = {f"surgery/{k}": v for k, v in stats._asdict().items()}
        metrics |= {"norm/unlearn": norm_u, "norm/relearn": norm_r}
        metrics["surgery/update_cosine"] = update_stats.cosine  # of -Δθ and g_r, before projection
        return metrics

    def learning_rate(self, step: int, steps: int) -> float:
        """Of the keys and values at a step of `steps`; the cosine starts after the warm-up."""
        if self.hparams.lr_schedule == "constant":
            return float(self.hparams.lr)
        progress = (step - self.hparams.warm_up) / (steps - self.hparams.warm_up)
        return float(self.hparams.lr * (1 + math.cos(math.pi * progress)) / 2)

    def set_learning_rate(self, optimizer: Any, step: int) -> None:
        """Give the optimizer this step's learning rate."""
        steps = int(self.trainer.num_training_batches) // self.accumulate
        for group in optimizer.param_groups:
            group["lr"] = self.learning_rate(step, steps)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """The gradients of one batch; after the step's last batch, the step.

        In the warm-up that is a step of the discriminator alone.
        """
        step, number = divmod(batch_idx, self.accumulate)
        count = 0
        if self.in_warm_up(step):
            gradients, metrics = self.warm_up_gradients(batch)
        else:
            g_u, g_r, g_d, metrics = self.gradients(batch)
            gradients, count = [*g_u, *g_r, *g_d], len(g_u)
        mean = self.mean_gradients(gradients, last=number == self.accumulate - 1)
        if mean:
            generator, critic = self.optimizers()  # type: ignore[misc]
            if count:
                self.set_learning_rate(generator, step)
                metrics |= self.step(generator, mean[:count], mean[count : 2 * count])
            step_with(critic, list(self.discriminator.parameters()), mean[2 * count :])
        self.log_dict(metrics, prog_bar=False)
        self.log("step", float(step), prog_bar=False)  # the loggers' x axis
        self.log("D", metrics["discriminator_loss"], prog_bar=True, logger=False)
