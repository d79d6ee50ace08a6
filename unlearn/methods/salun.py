"""SalUn, saliency unlearning (Fan et al. 2024, arXiv 2310.12508)."""

from __future__ import annotations

from itertools import islice
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from unlearn.methods.base import Batch, UnlearningModule
from unlearn.models.noise_schedule import add_noise, noise_target


def salient(gradients: list[Tensor], share: float) -> list[Tensor]:
    """Masks of the `share` of all entries with the largest absolute gradient.

    Source: Fan et al. 2024, equation 4, with the median (share 0.5) for its threshold γ.
    """
    sizes = torch.cat([g.abs().flatten() for g in gradients])
    threshold = sizes.kthvalue(len(sizes) - max(1, round(share * len(sizes))) + 1).values
    return [g.abs() >= threshold for g in gradients]


class SalUn(UnlearningModule):
    """Relabels the target's images with the anchor's prompt, in the salient weights alone.

    Trains the whole network where the gradient of the target's images is large.

    Args:
        lr: learning rate (Adam).
        alpha: weight of the loss on what must remain.
        share: of the weights that train, those with the largest gradient.
        mask_batches: batches that the gradient of the mask is the mean of.

    Raises:
        ValueError: an option is out of its range.

    Source: Fan et al. 2024, section 4 and equation 8.
    """

    POSITIVE = (*UnlearningModule.POSITIVE, "share", "mask_batches")
    MOST: ClassVar[dict[str, float]] = {"share": 1.0}
    images_of = "target"

    def __init__(
        self,
        *args: Any,
        lr: float = 1e-5,
        alpha: float = 0.1,
        share: float = 0.5,
        mask_batches: int = 16,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        self.masks: list[Tensor] = []

    @classmethod
    def check_run(cls, config: Any) -> None:
        """And that there are images of what must remain."""
        super().check_run(config)
        if not config.data.relearn_images:
            raise ValueError("data.relearn_images=0: salun needs images of what must remain")

    @classmethod
    def samples_at_once(cls, config: Any) -> int:
        """Both halves."""
        return int(2 * config.batch_size)

    @classmethod
    def samples(cls, config: Any) -> tuple[float, float]:
        """Both halves are trained, and before the first step the mask's batches."""
        forward, trained = super().samples(config)
        return forward, 2 * trained + config.batch_size * config.method.mask_batches

    def choose_weights(self) -> dict[str, Tensor]:
        """The whole network."""
        return dict(self.network.named_parameters())

    def configure_optimizers(self) -> Any:
        """Adam."""
        return torch.optim.Adam(self.weights, self.hparams.lr)

    def training_loss(self, batch: Batch, half: int) -> Tensor:
        """The model's own training loss on one half's images and prompts."""
        parts = (batch[k][:, half] for k in ("latents", "noise", "timesteps", "states"))
        latents, noise, timesteps, states = parts
        z_t = add_noise(latents, noise, timesteps, self.schedule)
        target = noise_target(latents, noise, timesteps, self.schedule)
        return F.mse_loss(self.output(z_t, timesteps, states).float(), target.float())

    def on_fit_start(self) -> None:
        """Find the salient weights: the gradient of the training loss on the target's images.

        They are the base model's, so a resumed run takes them from its checkpoint.
        """
        if self.masks:
            self.masks = [mask.to(self.device) for mask in self.masks]
            return
        total = [torch.zeros_like(w) for w in self.weights]
        loader = self.trainer.datamodule.train_dataloader()  # type: ignore[attr-defined]
        for batch in islice(loader, self.hparams.mask_batches):
            loss = self.training_loss({k: v.to(self.device) for k, v in batch.items()}, 0)
            for sum_, g in zip(total, torch.autograd.grad(loss, self.weights), strict=True):
                sum_ += g
        self.masks = salient(self.reduce(total), self.hparams.share)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """And the masks."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["masks"] = self.masks

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the masks."""
        self.masks = checkpoint["masks"]

    def loss(self, batch: Batch) -> Tensor:
        """MSE(ε_θ(x_f, c_t), sg ε_θ(x_f, c_a)) + α L_remain."""
        parts = (batch[k][:, 0] for k in ("latents", "noise", "timesteps", "states"))
        latents, noise, timesteps, states = parts
        z_t = add_noise(latents, noise, timesteps, self.schedule)
        with torch.no_grad():
            relabelled = self.output(z_t, timesteps, batch["teacher_states"])
        forget = F.mse_loss(self.output(z_t, timesteps, states).float(), relabelled.float())
        return forget + self.hparams.alpha * self.training_loss(batch, 1)

    def mean_gradients(self, gradients: list[Tensor], last: bool) -> list[Tensor]:
        """As every method's, nothing where the mask is off."""
        mean = super().mean_gradients(gradients, last)
        return [g * mask for g, mask in zip(mean, self.masks, strict=True)] if mean else []
