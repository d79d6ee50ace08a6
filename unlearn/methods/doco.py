"""DoCo: domain correction with a concept-preserving gradient (arXiv 2405.15304)."""

from __future__ import annotations

import math
from typing import Any

import lightning as L
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from unlearn.backbone import applying, split_cross_attention
from unlearn.diffusion import add_noise, noise_target, predict_x0
from unlearn.discriminator import PatchDiscriminator
from unlearn.losses import discriminator_loss, domain_correction_loss, relearn_loss
from unlearn.surgery import GRANULARITIES, SurgeryStats, clip_to_norm, project

SURGERY = ("gradient", "update", "unlearn_only", "sum")
RELEARN = ("noise", "teacher")
SCHEDULES = ("constant", "cosine")
INPUTS = ("x0", "scaled_x0")


class DoCo(L.LightningModule):
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
            for g_u, so that the step itself cannot work against g_r; "unlearn_only" (g_u) and
            "sum" (g_u + g_r) project nothing.
        relearn_target: "noise" (the training target) or "teacher" (the frozen model's output).
        lr_schedule: "constant" (as the paper) or "cosine", which decays `lr` to zero and so damps
            the last oscillations of the adversarial game.
        discriminator_input: "x0" (as the paper) or "scaled_x0", √ᾱ x̂0, in which the noise that the
            prediction amplifies at high timesteps (15 times at the last one) stays bounded.
        weight_decay: of AdamW.
        discriminator_channels: channels of the discriminator's first block.

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
        weight_decay: float = 1e-2,
        discriminator_channels: int = 64,
    ) -> None:
        super().__init__()
        for key, value, allowed in (
            ("surgery", surgery, SURGERY),
            ("relearn_target", relearn_target, RELEARN),
            ("granularity", granularity, GRANULARITIES),
            ("lr_schedule", lr_schedule, SCHEDULES),
            ("discriminator_input", discriminator_input, INPUTS),
        ):
            if value not in allowed:
                raise ValueError(f"method.{key}={value!r}: allowed are {list(allowed)}")
        self.automatic_optimization = False
        self.strict_loading = False
        self.save_hyperparameters(ignore=["unet", "alphas_cumprod"])
        self.unet = unet.requires_grad_(False)
        self.layers_by_name = split_cross_attention(self.unet)
        self.split_layers = list(self.layers_by_name.values())
        self.discriminator = PatchDiscriminator(
            unet.config.in_channels, unet.config.sample_size, discriminator_channels
        )
        self.register_buffer("alphas_cumprod", alphas_cumprod.float(), persistent=False)

    @property
    def weights(self) -> list[Tensor]:
        """The trained key and value weights."""
        return [layer.weight for layer in self.split_layers]

    def configure_optimizers(self) -> Any:
        """AdamW for the keys and values, Adam for the discriminator."""
        hp = self.hparams
        generator = torch.optim.AdamW(self.weights, hp.lr, weight_decay=hp.weight_decay)
        critic = torch.optim.Adam(
            self.discriminator.parameters(), hp.discriminator_lr, betas=(0.5, 0.999)
        )
        return generator, critic

    def x0(self, output: Tensor, z_t: Tensor, timesteps: Tensor) -> Tensor:
        """What the discriminator sees of the model's output: x̂0, or √ᾱ x̂0 (scaled_x0)."""
        kind = self.hparams.prediction_type
        x0 = predict_x0(output, z_t, timesteps, self.alphas_cumprod, kind)
        if self.hparams.discriminator_input == "x0":
            return x0
        return self.alphas_cumprod[timesteps].sqrt().view(-1, 1, 1, 1) * x0

    @torch.no_grad()
    def teacher(self, z_t: Tensor, timesteps: Tensor, states: Tensor) -> Tensor:
        """The frozen base model's output (B, C, h, w)."""
        with applying(self.split_layers, [[layer.base for layer in self.split_layers]]):
            return self.unet(z_t, timesteps, states).sample

    def warm_up_gradients(self, batch: dict[str, Tensor]) -> tuple[list[Tensor], dict[str, Tensor]]:
        """g_D and metrics, with no graph through the UNet and no relearn half."""
        latents, noise, timesteps = (batch[k][:, 0] for k in ("latents", "noise", "timesteps"))
        z_t = add_noise(latents, noise, timesteps, self.alphas_cumprod)
        real = self.x0(self.teacher(z_t, timesteps, batch["teacher_states"]), z_t, timesteps)
        with torch.no_grad():
            output = self.unet(z_t, timesteps, batch["states"][:, 0]).sample
        return self.discriminator_gradients(real, self.x0(output, z_t, timesteps))

    def discriminator_gradients(
        self, real: Tensor, fake: Tensor
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """g_D of L_D = BCE(D(real), 0) + BCE(D(sg fake), 1), and metrics."""
        logits_real, logits_fake = self.discriminator(real), self.discriminator(fake.detach())
        loss = discriminator_loss(logits_real, logits_fake)
        metrics = {
            "discriminator_loss": loss.detach(),
            "discriminator/real_accuracy": (logits_real < 0).float().mean(),
            "discriminator/fake_accuracy": (logits_fake > 0).float().mean(),
        }
        return list(torch.autograd.grad(loss, list(self.discriminator.parameters()))), metrics

    def gradients(
        self, batch: dict[str, Tensor]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor], dict[str, Tensor]]:
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
        fake = self.x0(output[:size], z_t[:size], timesteps[:size])
        unlearn = domain_correction_loss(self.discriminator(fake))
        if self.hparams.relearn_target == "teacher":
            target = self.teacher(z_t[size:], timesteps[size:], states[size:])
        else:
            target = noise_target(
                latents[size:], noise[size:], timesteps[size:], self.alphas_cumprod,
                self.hparams.prediction_type,
            )  # fmt: skip
        relearn = relearn_loss(output[size:], target)
        both = torch.autograd.grad(unlearn + relearn, [*leaves[0], *leaves[1]])
        teacher = self.teacher(z_t[:size], timesteps[:size], batch["teacher_states"])
        real = self.x0(teacher, z_t[:size], timesteps[:size])
        g_d, metrics = self.discriminator_gradients(real, fake)
        metrics |= {"unlearn_loss": unlearn.detach(), "relearn_loss": relearn.detach()}
        return list(both[: len(leaves[0])]), list(both[len(leaves[0]) :]), g_d, metrics

    def reduce(self, gradients: list[Tensor]) -> list[Tensor]:
        """The mean of gradients over ranks, in one collective."""
        if self.trainer.world_size == 1:
            return gradients
        flat = torch.cat([g.flatten() for g in gradients])
        flat = self.trainer.strategy.reduce(flat, reduce_op="mean")
        parts = flat.split([g.numel() for g in gradients])
        return [p.view_as(g) for p, g in zip(parts, gradients, strict=True)]

    def project(self, u: list[Tensor], r: list[Tensor]) -> tuple[list[Tensor], SurgeryStats]:
        """u without its component against r, at the strength and granularity of this run."""
        layers = [i // 2 for i in range(len(u))]
        return project(
            u, r, strength=self.hparams.strength, granularity=self.hparams.granularity,
            layers=layers,
        )  # fmt: skip

    def step(self, optimizer: Any, g_u: list[Tensor], g_r: list[Tensor]) -> dict[str, Tensor]:
        """Move θ: clip each gradient to norm 1, combine them, and step; returns metrics."""
        g_u, norm_u = clip_to_norm(g_u, 1.0)
        g_r, norm_r = clip_to_norm(g_r, 1.0)
        before = [w.detach().clone() for w in self.weights]
        gradient, stats = self.project(g_u, g_r)
        if self.hparams.surgery in ("unlearn_only", "update"):
            gradient = g_u
        elif self.hparams.surgery == "sum":
            gradient = [u + r for u, r in zip(g_u, g_r, strict=True)]
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

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """One DoCo step, or one warm-up step of the discriminator alone."""
        generator, critic = self.optimizers()  # type: ignore[misc]
        if batch_idx < self.hparams.warm_up:
            g_d, metrics = self.warm_up_gradients(batch)
            g_d = self.reduce(g_d)
        else:
            g_u, g_r, g_d, metrics = self.gradients(batch)
            count = len(g_u)
            reduced = self.reduce([*g_u, *g_r, *g_d])
            g_u, g_r, g_d = reduced[:count], reduced[count : 2 * count], reduced[2 * count :]
            for group in generator.param_groups:
                group["lr"] = self.learning_rate(batch_idx, int(self.trainer.num_training_batches))
            metrics |= self.step(generator, g_u, g_r)
        step_with(critic, list(self.discriminator.parameters()), g_d)
        self.log_dict(metrics, prog_bar=False)
        self.log("D", metrics["discriminator_loss"], prog_bar=True, logger=False)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep only what was trained: keys, values and the discriminator."""
        trained = tuple(f"unet.{n}." for n in self.layers_by_name)
        checkpoint["state_dict"] = {
            k: v
            for k, v in checkpoint["state_dict"].items()
            if k.startswith((*trained, "discriminator."))
        }


def step_with(optimizer: Any, parameters: list[Any], gradients: list[Tensor]) -> None:
    """One optimizer step along given gradients."""
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    optimizer.step()
    optimizer.zero_grad()
