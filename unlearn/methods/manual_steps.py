"""The steps of manual optimization: means over a step's batches and over the ranks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import lightning as L
import torch
from torch import Tensor

from unlearn.methods.gradients import Gradients
from unlearn.utils.errors import NotFiniteError

Batch = dict[str, Tensor]
Metrics = dict[str, Tensor]
LEARNERS = ("unlearn", "discriminator")  # of a method's optimizers, in order


class ManualSteps(L.LightningModule):
    """Collect the gradients and the metrics of a step's batches, and average them.

    Args:
        accumulate_grad_batches: how many batches a step takes.
    """

    def __init__(self, accumulate_grad_batches: int) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.accumulate_grad_batches = accumulate_grad_batches
        self.sums: Gradients | None = None  # over the step's batches so far
        self.seen: list[Metrics] = []  # of each of the step's batches so far

    def check_losses(self, metrics: Metrics, batch: Batch, step: int) -> None:
        """Refuse losses that are not finite, before a gradient is made of them.

        Raises:
            NotFiniteError: names the losses, and holds the batch.
        """
        losses = {name: value for name, value in metrics.items() if name.startswith("loss/")}
        if not torch.stack([*losses.values()]).isfinite().all():
            values = {name: value.item() for name, value in losses.items()}
            raise NotFiniteError(step, values, batch)

    def log_step(self, metrics: Metrics, step: int, shown: str) -> None:
        """Send a step's metrics and learning rates to the loggers, its losses to the progress bar.

        The loggers get them at once. Lightning's own way is to send them after the step's
        callbacks, so a checkpoint of the step would lack them.

        Args:
            metrics: the step's metrics.
            step: the number of the step.
            shown: the loss in the progress bar of a step that neither unlearns nor relearns.
        """
        losses: list[str] = [
            name for name in ("loss/unlearn", "loss/relearn") if name in metrics
        ] or [shown]
        for name in losses:
            self.log(name.removeprefix("loss/"), metrics[name], prog_bar=True, logger=False)
        if (step + 1) % self.trainer.log_every_n_steps == 0:
            values = {name: float(value) for name, value in metrics.items()}
            for name, optimizer in zip(LEARNERS, self.trainer.optimizers, strict=False):
                values[f"lr/{name}"] = optimizer.param_groups[0]["lr"]
            for logger in self.trainer.loggers:
                logger.log_metrics(values, step)

    def mean_metrics(self, metrics: Metrics, last: bool) -> Metrics:
        """Return the means over the step's batches after its last one; before, nothing.

        Args:
            metrics: of one batch.
            last: whether it is the step's last one.
        """
        self.seen.append(metrics)
        if not last:
            return {}
        seen, self.seen = self.seen, []
        return {name: torch.stack([own[name] for own in seen]).mean() for name in metrics}

    def mean_gradients(self, gradients: Gradients, last: bool) -> Gradients | None:
        """Return the mean over the step's batches and the ranks after its last one; before, None.

        The mean over ranks is one collective a step.

        Args:
            gradients: of one batch.
            last: whether it is the step's last one.
        """
        gradients = gradients.divide(self.accumulate_grad_batches)
        if self.sums is not None:
            gradients = self.sums.add(gradients)
        self.sums = None if last else gradients
        return self.reduce(gradients) if last else None

    def reduce(self, gradients: Gradients) -> Gradients:
        """Return the mean of gradients over the ranks, in one collective."""
        if self.trainer.world_size == 1:
            return gradients
        flat = self.trainer.strategy.reduce(gradients.flatten(), reduce_op="mean")
        return gradients.restore(flat)


def optimizer_step(optimizer: Any, parameters: list[Any], gradients: Iterable[Tensor]) -> None:
    """Make one optimizer step along given gradients, one a parameter."""
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    optimizer.step()
    optimizer.zero_grad()
