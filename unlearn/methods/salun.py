"""SalUn, saliency unlearning (Fan et al. 2024, arXiv 2310.12508)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unlearn.methods.base import UnlearningModule
from unlearn.methods.gradients import Gradients
from unlearn.methods.manual_steps import Batch
from unlearn.methods.options import MethodOptions, TrainingOptions
from unlearn.methods.plan import TrainingPlan
from unlearn.models.noise_schedule import NoiseSchedule, add_noise, noise_target
from unlearn.utils.options import option


@dataclass(frozen=True, kw_only=True)
class SalUnOptions(TrainingOptions):
    """Hold the options of `SalUn`."""

    lr: float = option(1e-5, at_least=0, help="learning rate (Adam)", at_most=100)
    alpha: float = option(
        0.1, at_least=0, help="weight of the loss on what must remain", at_most=10**6
    )
    share: float = option(
        0.5, above=0, at_most=1, help="share of the weights that train: the largest gradients'"
    )
    mask_batches: int = option(
        16,
        at_least=1,
        help="batches over which the gradient that chooses the weights is averaged",
        at_most=10_000,
    )


def salient(gradients: list[Tensor], share: float) -> list[Tensor]:
    """Return masks of the `share` of all entries with the largest absolute gradient.

    Args:
        gradients: one tensor a weight.
        share: in (0, 1].

    Returns:
        A bool tensor of each gradient's shape.

    Source: Fan et al. 2024, equation 4, with the median (share 0.5) for its threshold γ.
    """
    sizes = torch.cat([g.abs().flatten() for g in gradients])
    threshold = sizes.kthvalue(len(sizes) - max(1, round(share * len(sizes))) + 1).values
    return [g.abs() >= threshold for g in gradients]


class SalUn(UnlearningModule):
    """Relabel the target's images with the anchor's prompt, in the salient weights alone.

    The salient weights are those of the whole network where the gradient of the target's images is
    large.

    Raises:
        ValueError: an option is out of its range.

    Source: Fan et al. 2024, section 4 and equation 8.
    """

    Options: ClassVar[type[MethodOptions]] = SalUnOptions
    options: SalUnOptions
    images_of = "target"

    def __init__(self, network: nn.Module, schedule: NoiseSchedule, options: MethodOptions) -> None:
        super().__init__(network, schedule, options)
        self.masks: list[Tensor] = []

    @classmethod
    def check_plan(cls, options: Any, plan: TrainingPlan) -> None:
        """Refuse a run without images of what must remain too.

        Raises:
            ValueError: names the key, the value and what is allowed.
        """
        super().check_plan(options, plan)
        if not plan.relearn_images:
            raise ValueError(f"data.relearn_images=0: {cls.name} needs images of what must remain")

    @classmethod
    def samples_at_once(cls, options: Any, plan: TrainingPlan) -> int:
        """Return the samples of a batch's two halves."""
        return 2 * plan.batch_size

    @classmethod
    def samples(cls, options: Any, plan: TrainingPlan) -> tuple[float, float]:
        """Return how many samples a device's run takes through the network, see the base class.

        Both halves are trained on, and before the first step the batches of the masks.
        """
        forward, trained = super().samples(options, plan)
        return forward, 2 * trained + plan.batch_size * options.mask_batches

    def choose_weights(self) -> dict[str, Tensor]:
        """Return every weight of the network."""
        return dict(self.network.named_parameters())

    def configure_optimizers(self) -> Any:
        """Return Adam for the trained weights."""
        return torch.optim.Adam(self.weights, self.options.lr)

    def training_loss(self, batch: Batch, half: int) -> Tensor:
        """Return the model's own training loss on the images and prompts of one half of a batch.

        Args:
            batch: of `PairDataset`.
            half: 0, the unlearn half, or 1, the relearn half.
        """
        parts = (batch[k][:, half] for k in ("latents", "noise", "timesteps", "states"))
        latents, noise, timesteps, states = parts
        z_t = add_noise(latents, noise, timesteps, self.schedule)
        target = noise_target(latents, noise, timesteps, self.schedule)
        return F.mse_loss(self.output(z_t, timesteps, states).float(), target.float())

    def on_fit_start(self) -> None:
        """Find the salient weights by the gradient of the training loss on the target's images.

        They are those of the base model, so a resumed run takes them from its checkpoint.
        """
        if self.masks:
            self.masks = [mask.to(self.device) for mask in self.masks]
            return
        total = [torch.zeros_like(w) for w in self.weights]
        loader = self.trainer.datamodule.train_dataloader()  # type: ignore[attr-defined]
        for batch in islice(loader, self.options.mask_batches):
            loss = self.training_loss({k: v.to(self.device) for k, v in batch.items()}, 0)
            for sum_, g in zip(total, torch.autograd.grad(loss, self.weights), strict=True):
                sum_ += g
        self.masks = salient([*self.reduce(Gradients(unlearn=total)).unlearn], self.options.share)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the masks too."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["masks"] = self.masks

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the masks from the checkpoint."""
        self.masks = checkpoint["masks"]

    def loss(self, batch: Batch) -> Tensor:
        """Return MSE(ε_θ(x_f, c_t), sg ε_θ(x_f, c_a)) + α L_remain, a 0-dim tensor."""
        parts = (batch[k][:, 0] for k in ("latents", "noise", "timesteps", "states"))
        latents, noise, timesteps, states = parts
        z_t = add_noise(latents, noise, timesteps, self.schedule)
        with torch.no_grad():
            relabelled = self.output(z_t, timesteps, batch["teacher_states"])
        forget = F.mse_loss(self.output(z_t, timesteps, states).float(), relabelled.float())
        return forget + self.options.alpha * self.training_loss(batch, 1)

    def mean_gradients(self, gradients: Gradients, last: bool) -> Gradients | None:
        """Return the mean as every method does, with zeros outside of the masks."""
        mean = super().mean_gradients(gradients, last)
        if mean is None:
            return None
        return Gradients([g * mask for g, mask in zip(mean.unlearn, self.masks, strict=True)])
