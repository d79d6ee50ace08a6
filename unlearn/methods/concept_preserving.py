"""A concept-preserving gradient: unlearning that never works against relearning."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from unlearn.concepts.concept import Concept
from unlearn.data.resumable_loader import ResumableLoader
from unlearn.methods.base import UnlearningModule
from unlearn.methods.concept_preserving_options import ConceptPreservingOptions
from unlearn.methods.gradients import Gradients
from unlearn.methods.losses import relearn_loss
from unlearn.methods.manual_steps import Batch, Metrics, optimizer_step
from unlearn.methods.options import MethodOptions
from unlearn.methods.plan import TrainingPlan
from unlearn.methods.surgery import SurgeryStats, clip_to_norm, project
from unlearn.methods.teacher_ahead import TeacherAhead, batches_at_once
from unlearn.methods.uce import edit_matrix, prompt_states
from unlearn.models.cross_attention import install_split_layers, per_chunk_weights
from unlearn.models.noise_schedule import NoiseSchedule, add_noise, noise_target

RELEARN_WEIGHT = 0.1  # of the reference's loss without surgery


class ConceptPreserving(UnlearningModule):
    """Remove from the gradient of an unlearn loss what conflicts with relearning.

    One forward pass holds the unlearn half and the relearn half of a batch. Each half goes through
    its own leaf of the key and value weights. One backward pass so gives both gradients exactly.
    The teacher is the same network with the original weights. A subclass defines the unlearn loss.

    `surgery` names what is projected. "gradient" projects g_u before AdamW, as the paper does.
    "update" projects AdamW's step for g_u, so the step itself cannot work against g_r. The others
    project nothing.

    Raises:
        ValueError: an option has none of its allowed values, or the network has no closed-form
            start.

    Source: DoCo (arXiv 2405.15304), concept-preserving gradient.
    """

    Options: ClassVar[type[MethodOptions]] = ConceptPreservingOptions
    options: ConceptPreservingOptions

    def __init__(self, network: nn.Module, schedule: NoiseSchedule, options: MethodOptions) -> None:
        super().__init__(network, schedule, options)
        if self.options.start == "closed_form" and self.part != "unet":
            raise ValueError(
                "method.start='closed_form': is for keys and values of the text states themselves, "
                "as a UNet's cross-attention has; this model needs method.start=base"
            )

    @classmethod
    def samples_at_once(cls, options: Any, plan: TrainingPlan) -> int:
        """Return the samples of a batch's two halves."""
        return 2 * plan.batch_size

    @classmethod
    def samples(cls, options: Any, plan: TrainingPlan) -> tuple[float, float]:
        """Return how many samples a device's run takes through the network.

        A step that unlearns trains on both halves. The teacher's outputs are computed without
        gradient, for the anchor prompts, and for the relearn half where that regresses to them. A
        step of the warm-up trains on none: the teacher's and the trained model's outputs of the
        unlearn half are computed without gradient.

        Returns:
            The samples that go forward without gradient, and those that are trained on.
        """
        batch = plan.batch_size * options.accumulate_grad_batches
        warmup_steps = cls.warmup_length(options)
        left = plan.steps - warmup_steps
        teachers = 2 if options.relearn_target == "teacher" else 1
        return batch * (2 * warmup_steps + teachers * left), 2 * batch * left

    def choose_weights(self) -> dict[str, Tensor]:
        """Return the keys and values of text, and let each half of a batch have its own weights."""
        layers = install_split_layers(self.network, self.options.detach_first_token)
        self.split_layers = list(layers.values())
        return {f"{name}.weight": layer.weight for name, layer in layers.items()}

    @torch.no_grad()
    def prepare(self, pipe: DiffusionPipeline, concept: Concept) -> None:
        """Set the weights to those that training begins at, see the option `start`.

        A closed-form start multiplies every key and value weight by one matrix, see `edit_matrix`
        (λ 0.5). The tokens of every target prompt then come nearest to those of its anchor prompt,
        and those of the relearn prompts stay.
        """
        if self.options.start == "closed_form":
            matrix = edit_matrix(*prompt_states(pipe, concept, self.options.contexts))
            for weight in self.weights:
                weight.copy_(weight.double() @ matrix)

    def configure_optimizers(self) -> Any:
        """Return AdamW for the keys and values."""
        options = self.options
        return torch.optim.AdamW(self.weights, options.lr, weight_decay=options.weight_decay)

    def unlearn(
        self, output: Tensor, teacher: Tensor, z_t: Tensor, timesteps: Tensor
    ) -> tuple[Tensor, list[Tensor], Metrics]:
        """Return the unlearn loss, the discriminator's gradients and metrics.

        Args:
            output: the trained model's output for the target prompts, (B, C, h, w).
            teacher: the base model's output for the anchor prompts, (B, C, h, w).
            z_t: the noisy latents, (B, C, h, w).
            timesteps: the timesteps of the latents, (B,).

        Returns:
            A 0-dim tensor; g_D, empty for a method without a discriminator; metrics by name.
        """
        raise NotImplementedError

    def feed(self, loader: ResumableLoader) -> Iterable[Batch]:
        """Return the loader's batches, each with the teacher's outputs."""

        def teacher_outputs(batch: Batch, last: int) -> Tensor:
            with self.trainer.precision_plugin.train_step_context():
                relearns = self.relearns(last // self.accumulate_grad_batches)
                return self.teacher_outputs(batch, relearns)

        count = batches_at_once(loader.batch_size, self.network.config.sample_size)
        return TeacherAhead(loader, count, teacher_outputs, self.trainer.strategy.batch_to_device)

    def relearns(self, step: int) -> bool:
        """Return whether the relearn half plays a part at a step; by default always."""
        return True

    def teacher_outputs(self, batch: Batch, relearns: bool = True) -> Tensor:
        """Return the teacher's outputs for a batch.

        Args:
            batch: of `PairDataset`; it may hold the samples of any number of steps.
            relearns: whether the relearn half plays a part.

        Returns:
            The outputs (B, 1, C, h, w) for the anchor prompts. Where relearning regresses to the
            teacher, (B, 2, C, h, w): the second ones are for the prompts of the relearn half.
        """
        halves = 2 if relearns and self.options.relearn_target == "teacher" else 1
        states = torch.stack([batch["teacher_states"], batch["states"][:, 1]], dim=1)
        latents, noise, timesteps, states = (
            x[:, :halves].flatten(0, 1)
            for x in (batch["latents"], batch["noise"], batch["timesteps"], states)
        )
        z_t = add_noise(latents, noise, timesteps, self.schedule)
        return self.teacher(z_t, timesteps, states).unflatten(0, (-1, halves))

    def relearn_targets(
        self, teacher_outputs: Tensor, latents: Tensor, noise: Tensor, timesteps: Tensor
    ) -> Tensor:
        """Return what the relearn half should output, (B, C, h, w).

        Args:
            teacher_outputs: see `teacher_outputs`.
            latents: of the relearn half, (B, C, h, w).
            noise: of the relearn half, (B, C, h, w).
            timesteps: of the relearn half, (B,).
        """
        if self.options.relearn_target == "teacher":
            return teacher_outputs[:, 1]
        return noise_target(latents, noise, timesteps, self.schedule)

    def gradients(self, batch: Batch) -> tuple[Gradients, Metrics]:
        """Return the gradients and metrics of a batch, all from one forward pass with the same θ.

        Args:
            batch: of `PairDataset`, with the halves on dimension 1. `feed` adds the teacher's
                outputs as "teacher_outputs"; without them they are computed here.
        """
        latents, noise, timesteps, states = (
            torch.cat([batch[k][:, 0], batch[k][:, 1]])
            for k in ("latents", "noise", "timesteps", "states")
        )
        size = len(batch["latents"])
        z_t = add_noise(latents, noise, timesteps, self.schedule)
        teacher = (
            batch["teacher_outputs"] if "teacher_outputs" in batch else self.teacher_outputs(batch)
        )
        leaves_u, leaves_r = ([w.detach().requires_grad_() for w in self.weights] for _ in range(2))
        # the backward pass stands inside too: gradient checkpointing computes layers anew there
        with per_chunk_weights(self.split_layers, [leaves_u, leaves_r]):
            output = self.output(z_t, timesteps, states)
            loss_u, g_d, metrics = self.unlearn(
                output[:size], teacher[:, 0], z_t[:size], timesteps[:size]
            )
            relearn_half = (x[size:] for x in (latents, noise, timesteps))
            loss_r = relearn_loss(output[size:], self.relearn_targets(teacher, *relearn_half))
            both = torch.autograd.grad(loss_u + loss_r, [*leaves_u, *leaves_r])
        metrics |= {"loss/unlearn": loss_u.detach(), "loss/relearn": loss_r.detach()}
        count = len(leaves_u)
        return Gradients(both[:count], both[count:], g_d), metrics

    def project(
        self, u: Sequence[Tensor], r: Sequence[Tensor]
    ) -> tuple[list[Tensor], SurgeryStats]:
        """Return u without its component against r, at the run's strength and granularity."""
        layers = [i // 2 for i in range(len(u))]  # a layer has a key and a value
        return project(
            u, r, strength=self.options.strength, granularity=self.options.granularity,
            layers=layers,
        )  # fmt: skip

    def combine(self, g_u: list[Tensor], g_r: list[Tensor]) -> tuple[list[Tensor], SurgeryStats]:
        """Return the gradient that AdamW gets, and the statistics of the surgery.

        Args:
            g_u: clipped to norm 1.
            g_r: clipped to norm 1.
        """
        projected, stats = self.project(g_u, g_r)
        if self.options.surgery == "gradient":
            return projected, stats
        weight = {"sum": 1.0, "weighted_sum": RELEARN_WEIGHT}.get(self.options.surgery, 0.0)
        return [u + weight * r for u, r in zip(g_u, g_r, strict=True)], stats

    def step(self, optimizer: Any, unlearn: Sequence[Tensor], relearn: Sequence[Tensor]) -> Metrics:
        """Clip g_u and g_r to norm 1 each, combine them, and move θ; return metrics.

        Args:
            optimizer: of the trained weights.
            unlearn: g_u.
            relearn: g_r.
        """
        g_u, norm_u = clip_to_norm(unlearn, 1.0)
        g_r, norm_r = clip_to_norm(relearn, 1.0)
        before = [w.detach().clone() for w in self.weights]
        gradient, stats = self.combine(g_u, g_r)
        optimizer_step(optimizer, self.weights, gradient)
        # what θ lost in this step: the direction that descends, as a gradient does
        update = [b - w.detach() for b, w in zip(before, self.weights, strict=True)]
        kept, update_stats = self.project(update, g_r)
        if self.options.surgery == "update":
            with torch.no_grad():
                for weight, old, move in zip(self.weights, before, kept, strict=True):
                    weight.copy_(old - move)
            stats = update_stats
        metrics = {f"surgery/{k}": v for k, v in stats._asdict().items()}
        metrics |= {"norm/unlearn": norm_u, "norm/relearn": norm_r}
        metrics["surgery/update_cosine"] = update_stats.cosine  # of -Δθ and g_r, before projection
        return metrics

    def learning_rate(self, step: int, steps: int) -> float:
        """Return the learning rate of the keys and values, see the option `lr_schedule`."""
        if self.options.lr_schedule == "constant":
            return float(self.options.lr)
        return float(self.options.lr * (1 + math.cos(math.pi * step / steps)) / 2)

    def update(self, optimizer: Any, mean: Gradients, step: int) -> Metrics:
        """Make one step along the mean of g_u and g_r over batches and ranks; return metrics.

        Args:
            optimizer: of the trained weights.
            mean: the gradients.
            step: the number of the step, from 0, among those that unlearn.
        """
        self.set_learning_rate(optimizer, step)
        return self.step(optimizer, mean.unlearn, mean.relearn)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Add the gradients of one batch; after the step's last batch, make the step."""
        step, number = divmod(batch_idx, self.accumulate_grad_batches)
        gradients, metrics = self.gradients(batch)
        self.check_losses(metrics, batch, step)
        last = number == self.accumulate_grad_batches - 1
        metrics = self.mean_metrics(metrics, last)
        mean = self.mean_gradients(gradients, last)
        if mean is not None:
            metrics |= self.update(self.optimizers(), mean, step)
            self.log_step(metrics, step, "loss/unlearn")
