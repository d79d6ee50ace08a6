"""Forget-Me-Not (Zhang et al. 2024, arXiv 2303.17591): attention to the concept's tokens falls."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor
from torch import Tensor

from unlearn.concepts.concept import Concept
from unlearn.concepts.prompts import training_pairs
from unlearn.methods.base import Batch, UnlearningModule
from unlearn.models.noise_schedule import add_noise


def token_positions(pipe: DiffusionPipeline, words: list[str], prompt: str) -> Tensor:
    """Where the tokens of one of the words stand in the prompt: flags (T,).

    Raises:
        ValueError: none of the words is in the prompt.
    """
    ids = pipe.tokenizer(prompt).input_ids
    flags = torch.zeros(pipe.tokenizer.model_max_length, dtype=torch.bool)
    for word in words:
        own = pipe.tokenizer(word).input_ids[1:-1]
        for start in range(len(ids) - len(own) + 1):
            if ids[start : start + len(own)] == own:
                flags[start : start + len(own)] = True
    if not flags.any():
        raise ValueError(f"the prompt {prompt!r} holds none of {words}")
    return flags


@contextmanager
def attention_maps(unet: UNet2DConditionModel) -> Iterator[list[Tensor]]:
    """Inside, a list that gets the probabilities (B * heads, h * w, T) of each cross-attention."""
    maps: list[Tensor] = []
    layers = [m for m in unet.modules() if isinstance(m, Attention) and m.is_cross_attention]
    processors = [layer.processor for layer in layers]

    def record(layer: Any) -> None:
        plain = layer.get_attention_scores

        def scores(*args: Any, **kwargs: Any) -> Tensor:
            maps.append(plain(*args, **kwargs))
            return maps[-1]

        layer.get_attention_scores = scores
        layer.set_processor(AttnProcessor())  # the one that computes the probabilities

    for layer in layers:
        record(layer)
    try:
        yield maps
    finally:
        for layer, processor in zip(layers, processors, strict=True):
            del layer.get_attention_scores  # the class's own again
            layer.set_processor(processor)


class ForgetMeNot(UnlearningModule):
    """Minimises what the cross-attentions give to the target's tokens, on the target's images.

    Trains the whole UNet.

    Args:
        lr: learning rate (AdamW).
        weight_decay: of AdamW.

    Source: Zhang et al. 2024, section 3.2 (attention resteering).
    """

    of_unets = True
    images_of = "target"

    def __init__(
        self, *args: Any, lr: float = 2e-6, weight_decay: float = 1e-2, **options: Any
    ) -> None:
        super().__init__(*args, **options)

    @classmethod
    def check_run(cls, config: Any) -> None:
        """And gradient_checkpointing, which does not keep the attentions of the forward pass."""
        super().check_run(config)
        if config.gradient_checkpointing:
            raise ValueError(
                "gradient_checkpointing=True: forget_me_not trains on the attentions of its "
                "forward pass, "
                "which checkpointing does not keep; take gradient_checkpointing=false"
            )

    @classmethod
    def samples(cls, config: Any) -> tuple[float, float]:
        """No teacher's."""
        return 0, super().samples(config)[1]

    def choose_weights(self) -> dict[str, Tensor]:
        """The whole UNet."""
        return dict(self.network.named_parameters())

    def prepare(self, pipe: DiffusionPipeline, concept: Concept) -> None:
        """Where the target's tokens stand in each prompt."""
        prompts = [target for _, target in training_pairs(concept)]
        flags = torch.stack([token_positions(pipe, concept.targets, p) for p in prompts])
        self.register_buffer("positions", flags, persistent=False)

    def configure_optimizers(self) -> Any:
        """AdamW."""
        hp = self.hparams
        return torch.optim.AdamW(self.weights, hp.lr, weight_decay=hp.weight_decay)

    def loss(self, batch: Batch) -> Tensor:
        """‖probabilities of the target's tokens in all cross-attentions‖₂, the batch's mean."""
        parts = (batch[k][:, 0] for k in ("latents", "noise", "timesteps", "states"))
        latents, noise, timesteps, states = parts
        z_t = add_noise(latents, noise, timesteps, self.schedule)
        with attention_maps(self.network) as maps:
            self.output(z_t, timesteps, states)
        chosen = self.positions[batch["pair"]].to(z_t.dtype)[:, None, None]  # (B, 1, 1, T)
        size = len(chosen)
        squares = [
            (m.unflatten(0, (size, -1)) * chosen).float().square().flatten(1).sum(1) for m in maps
        ]
        return torch.stack(squares).sum(0).sqrt().mean()
