"""Concept Ablation (Kumari et al. 2023, arXiv 2303.13516): regression of the target's output."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from unlearn.methods.base import Batch, UnlearningModule
from unlearn.models.noise_schedule import add_noise, noise_target


class ConceptAblation(UnlearningModule):
    """The target prompt's output is trained towards the anchor's, by mean squared error.

    Nothing protects the rest of the model.

    Args:
        lr: learning rate (AdamW).
        trained: "keys_values" of the cross-attentions, or "attention", all weights of all
            attentions, as the paper does for explicit content.
        ablation_target: "anchor" (model-based): what the current model itself outputs for the
            anchor prompt, without gradient; "noise" (noise-based): the training target of the
            anchor image.
        weight_decay: of AdamW.

    Raises:
        ValueError: an option has none of its allowed values.

    Source: Kumari et al. 2023, equations 5 and 7.
    """

    CHOICES: ClassVar[dict[str, tuple[str, ...]]] = {
        "ablation_target": ("anchor", "noise"),
        "trained": ("keys_values", "attention"),
    }
    clip_norm = 1.0

    def __init__(
        self,
        *args: Any,
        lr: float = 1.6e-5,
        trained: str = "keys_values",
        ablation_target: str = "anchor",
        weight_decay: float = 1e-2,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)

    @classmethod
    def samples(cls, config: Any) -> tuple[float, float]:
        """Noise-based, without the anchor's."""
        forward, trained = super().samples(config)
        return forward * (config.method.ablation_target == "anchor"), trained

    def choose_weights(self) -> dict[str, Tensor]:
        """The keys and values of text, or everything in the attentions."""
        if self.hparams.trained == "keys_values":
            return super().choose_weights()
        return {
            name: weight
            for name, weight in self.network.named_parameters()
            if any(part.startswith("attn") for part in name.split("."))
        }

    def configure_optimizers(self) -> Any:
        """AdamW."""
        hp = self.hparams
        return torch.optim.AdamW(self.weights, hp.lr, weight_decay=hp.weight_decay)

    def loss(self, batch: Batch) -> Tensor:
        """The mean squared error on the unlearn half of a batch, see `PairDataset`."""
        latents, noise, timesteps, states = (
            batch[k][:, 0] for k in ("latents", "noise", "timesteps", "states")
        )
        z_t = add_noise(latents, noise, timesteps, self.schedule)
        if self.hparams.ablation_target == "noise":
            target = noise_target(latents, noise, timesteps, self.schedule)
        else:
            with torch.no_grad():
                target = self.output(z_t, timesteps, batch["teacher_states"])
        output = self.output(z_t, timesteps, states)
        return F.mse_loss(output.float(), target.float())
