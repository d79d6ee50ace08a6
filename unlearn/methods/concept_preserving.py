"""A concept-preserving gradient: unlearning that never works against relearning."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from unlearn.concepts.concept import Concept
from unlearn.data.resumable_loader import Batches
from unlearn.methods.base import Batch, Metrics, UnlearningModule, optimizer_step
from unlearn.methods.losses import relearn_loss
from unlearn.methods.surgery import GRANULARITIES, SurgeryStats, clip_to_norm, project
from unlearn.methods.teacher_ahead import TeacherAhead, batches_at_once
from unlearn.methods.uce import edit_matrix, prompt_states
from unlearn.models.cross_attention import per_chunk_weights, split_cross_attention
from unlearn.models.noise_schedule import add_noise, noise_target

RELEARN_WEIGHT = 0.1  # of the reference's loss without surgery


class ConceptPreserving(UnlearningModule):
    """The gradient of some unlearn loss, without what of it conflicts with relearning.

    One forward pass holds the unlearn half and the relearn half; each goes through its own leaf
    of the key and value weights, so one backward pass gives both gradients exactly. The teacher
    is the same network with the original weights. A subclass says what the unlearn loss is.

    Args:
        lr: learning rate of the keys and values (AdamW).
        strength: λ of the projection.
        granularity: "tensor", "layer" or "network".
        surgery: "gradient" projects g_u before AdamW, as the paper; "update" projects AdamW's step
            for g_u, so that the step itself cannot work against g_r; "unlearn_only" (g_u), "sum"
            (g_u + g_r) and "weighted_sum" (g_u + 0.1 g_r, the reference without surgery) project
            nothing.
        relearn_target: "noise" (the training target) or "teacher" (the frozen model's output).
        lr_schedule: "constant" (as the paper) or "cosine", which decays `lr` to zero and so damps
            the last oscillations of the adversarial game.
        weight_decay: of AdamW.
        start: "base" (as the paper), or "closed_form": begin from the keys and values for which the
            tokens of every target prompt come nearest to those of its anchor prompt, and those of
            the relearn prompts stay (`edit_matrix`, λ 0.5); of UNets alone.
        contexts: of such a start, how many of the pairs also count before and after a relearn
            prompt, so that it holds in prompts that go on.
        detach_first_token: take the first text token's key and value from the weights without
            gradient, as the reference implementation does.

    Raises:
        ValueError: an option has none of its allowed values, or the network cannot begin there.

    Source: DoCo (arXiv 2405.15304), concept-preserving gradient.
    """

    CHOICES: ClassVar[dict[str, tuple[str, ...]]] = {
        "surgery": ("gradient", "update", "unlearn_only", "sum", "weighted_sum"),
        "relearn_target": ("noise", "teacher"),
        "granularity": GRANULARITIES,
        "lr_schedule": ("constant", "cosine"),
        "start": ("base", "closed_form"),
    }

    def __init__(
        self,
        *args: Any,
        lr: float = 1e-4,
        strength: float = 1.0,
        granularity: str = "tensor",
        surgery: str = "gradient",
        relearn_target: str = "noise",
        lr_schedule: str = "constant",
        weight_decay: float = 1e-2,
        start: str = "base",
        contexts: int = 0,
        detach_first_token: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        if start == "closed_form" and self.part != "unet":
            raise ValueError(
                "method.start='closed_form': is for keys and values of the text states themselves, "
                "as a UNet's cross-attention has; this model needs method.start=base"
            )

    @classmethod
    def samples_at_once(cls, config: Any) -> int:
        """Both halves."""
        return int(2 * config.batch_size)

    @classmethod
    def samples(cls, config: Any) -> tuple[float, float]:
        """Both halves are trained; the teacher's, of the anchor or of both, go forward alone.

        In the warm-up all do: the teacher's and the trained model's of the unlearn half.
        """
        batch = config.batch_size * config.method.accumulate_grad_batches
        warmup_steps = cls.warmup_length(config.method)
        left = config.steps - warmup_steps
        teachers = 2 if config.method.get("relearn_target") == "teacher" else 1
        return batch * (2 * warmup_steps + teachers * left), 2 * batch * left

    def choose_weights(self) -> dict[str, Tensor]:
        """Keys and values of text, whose layers take a weight a half of the batch."""
        layers = split_cross_attention(self.network, self.hparams.detach_first_token)
        self.split_layers = list(layers.values())
        return {f"{name}.weight": layer.weight for name, layer in layers.items()}

    @torch.no_grad()
    def prepare(self, pipe: DiffusionPipeline, concept: Concept) -> None:
        """Go to the start."""
        if self.hparams.start == "closed_form":
            matrix = edit_matrix(*prompt_states(pipe, concept, self.hparams.contexts))
            for weight in self.weights:
                weight.copy_(weight.double() @ matrix)

    def configure_optimizers(self) -> Any:
        """AdamW for the keys and values."""
        hp = self.hparams
        return torch.optim.AdamW(self.weights, hp.lr, weight_decay=hp.weight_decay)

    def unlearn(
        self, output: Tensor, teacher: Tensor, z_t: Tensor, timesteps: Tensor
    ) -> tuple[Tensor, list[Tensor], Metrics]:
        """The unlearn loss, further gradients to average over the ranks, and metrics.

        Args:
            output: of the trained model for the target prompts, (B, C, h, w).
            teacher: of the base model for the anchor prompts, same shape.
            z_t: the noisy latents, same shape.
            timesteps: (B,).
        """
        raise NotImplementedError

    def feed(self, loader: Batches) -> Iterable[Batch]:
        """Batches with the teacher's outputs."""

        def teach(batch: Batch, last: int) -> Tensor:
            with self.trainer.precision_plugin.train_step_context():
                return self.teach(batch, self.relearns(last // self.accumulate_grad_batches))

        count = batches_at_once(loader.batch_size, self.network.config.sample_size)
        return TeacherAhead(loader, count, teach, self.trainer.strategy.batch_to_device)

    def relearns(self, step: int) -> bool:
        """Whether the relearn half plays a part at this step."""
        return True

    def teach(self, batch: Batch, relearns: bool = True) -> Tensor:
        """The teacher's outputs (B, 1, C, h, w) for the anchor prompts; where relearning is from
        the teacher, (B, 2, C, h, w), the second for the prompts of the relearn half.

        Args:
            batch: see `PairDataset`; of any number of steps.
            relearns: the relearn half plays a part.
        """
        halves = 2 if relearns and self.hparams.relearn_target == "teacher" else 1
        states = torch.stack([batch["teacher_states"], batch["states"][:, 1]], dim=1)
        latents, noise, timesteps, states = (
            x[:, :halves].flatten(0, 1)
            for x in (batch["latents"], batch["noise"], batch["timesteps"], states)
        )
        z_t = add_noise(latents, noise, timesteps, self.schedule)
        return self.teacher(z_t, timesteps, states).unflatten(0, (-1, halves))

    def relearn_targets(
        self, taught: Tensor, latents: Tensor, noise: Tensor, timesteps: Tensor
    ) -> Tensor:
        """What the relearn half should output (B, C, h, w)."""
        if self.hparams.relearn_target == "teacher":
            return taught[:, 1]
        return noise_target(latents, noise, timesteps, self.schedule)

    def gradients(self, batch: Batch) -> tuple[list[Tensor], list[Tensor], list[Tensor], Metrics]:
        """g_u, g_r, further gradients and metrics, all from one forward pass with the same θ.

        Args:
            batch: see `PairDataset`; halves on dimension 1. With the teacher's outputs as "taught",
                if `feed` brought them.
        """
        latents, noise, timesteps, states = (
            torch.cat([batch[k][:, 0], batch[k][:, 1]])
            for k in ("latents", "noise", "timesteps", "states")
        )
        size = len(batch["latents"])
        z_t = add_noise(latents, noise, timesteps, self.schedule)
        taught = batch["taught"] if "taught" in batch else self.teach(batch)
        leaves = [[w.detach().requires_grad_() for w in self.weights] for _ in range(2)]
        with per_chunk_weights(
            self.split_layers, leaves
        ):  # backward too: checkpointing computes anew there
            output = self.output(z_t, timesteps, states)
            unlearn, further, metrics = self.unlearn(
                output[:size], taught[:, 0], z_t[:size], timesteps[:size]
            )
            kept = (x[size:] for x in (latents, noise, timesteps))
            relearn = relearn_loss(output[size:], self.relearn_targets(taught, *kept))
            both = torch.autograd.grad(unlearn + relearn, [*leaves[0], *leaves[1]])
        metrics |= {"unlearn_loss": unlearn.detach(), "relearn_loss": relearn.detach()}
        return list(both[: len(leaves[0])]), list(both[len(leaves[0]) :]), further, metrics

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
        optimizer_step(optimizer, self.weights, gradient)
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
        """Of the keys and values at step `step` of the `steps` that unlearn."""
        if self.hparams.lr_schedule == "constant":
            return float(self.hparams.lr)
        return float(self.hparams.lr * (1 + math.cos(math.pi * step / steps)) / 2)

    def update(self, optimizer: Any, mean: list[Tensor], step: int) -> Metrics:
        """One step along the ranks' mean of g_u and g_r; `step` counts those that unlearn."""
        self.set_learning_rate(optimizer, step)
        count = len(self.weights)
        return self.step(optimizer, mean[:count], mean[count : 2 * count])

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """The gradients of one batch; after the step's last batch, the step."""
        step, number = divmod(batch_idx, self.accumulate_grad_batches)
        g_u, g_r, _, metrics = self.gradients(batch)
        self.check_losses(metrics, batch, step)
        last = number == self.accumulate_grad_batches - 1
        metrics = self.mean_metrics(metrics, last)
        if mean := self.mean_gradients([*g_u, *g_r], last):
            metrics |= self.update(self.optimizers(), mean, step)
            self.log_step(metrics, step, "unlearn_loss")
