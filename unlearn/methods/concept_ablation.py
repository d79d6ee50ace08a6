"""Concept Ablation (Kumari et al. 2023, arXiv 2303.13516): regression of the target's output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from unlearn.methods.base import UnlearningModule
from unlearn.methods.manual_steps import Batch
from unlearn.methods.options import MethodOptions, TrainingOptions
from unlearn.methods.plan import TrainingPlan
from unlearn.models.noise_schedule import add_noise, noise_target
from unlearn.utils.options import option


@dataclass(frozen=True, kw_only=True)
class ConceptAblationOptions(TrainingOptions):
    """Hold the options of `ConceptAblation`."""

    lr: float = option(1.6e-5, at_least=0, help="learning rate (AdamW)", at_most=100)
    trained: str = option(
        "keys_values",
        choices=("keys_values", "attention"),
        help="what trains: keys and values of the cross-attentions, or all weights of all "
        "attentions (as the paper for explicit content)",
    )
    ablation_target: str = option(
        "anchor",
        choices=("anchor", "noise"),
        help="what the target prompt's output regresses to: the model's own output for the anchor "
        "prompt (model-based), or the anchor image's training target (noise-based)",
    )
    weight_decay: float = option(1e-2, at_least=0, help="weight decay of AdamW", at_most=100)


class ConceptAblation(UnlearningModule):
    """Train the target prompt's output towards the anchor's, by mean squared error.

    The model-based target is the output of the model as it stands, without gradient. Nothing
    protects the rest of the model.

    Raises:
        ValueError: an option has none of its allowed values.

    Source: Kumari et al. 2023, equations 5 and 7.
    """

    Options: ClassVar[type[MethodOptions]] = ConceptAblationOptions
    options: ConceptAblationOptions
    clip_norm = 1.0

    @classmethod
    def samples(cls, options: Any, plan: TrainingPlan) -> tuple[float, float]:
        """Return how many samples a device's run takes through the network, see the base class.

        Only the model-based target has samples that go forward without gradient.
        """
        forward, trained = super().samples(options, plan)
        return forward * (options.ablation_target == "anchor"), trained

    def choose_weights(self) -> dict[str, Tensor]:
        """Return the keys and values of text, or every weight of the attentions."""
        if self.options.trained == "keys_values":
            return super().choose_weights()
        return {
            name: weight
            for name, weight in self.network.named_parameters()
            if any(part.startswith("attn") for part in name.split("."))
        }

    def configure_optimizers(self) -> Any:
        """Return AdamW for the trained weights."""
        options = self.options
        return torch.optim.AdamW(self.weights, options.lr, weight_decay=options.weight_decay)

    def loss(self, batch: Batch) -> Tensor:
        """Return the mean squared error on the unlearn half of a batch, a 0-dim tensor."""
        latents, noise, timesteps, states = (
            batch[k][:, 0] for k in ("latents", "noise", "timesteps", "states")
        )
        z_t = add_noise(latents, noise, timesteps, self.schedule)
        if self.options.ablation_target == "noise":
            target = noise_target(latents, noise, timesteps, self.schedule)
        else:
            with torch.no_grad():
                target = self.output(z_t, timesteps, batch["teacher_states"])
        output = self.output(z_t, timesteps, states)
        return F.mse_loss(output.float(), target.float())
