"""Forget-Me-Not (Zhang et al. 2024, arXiv 2303.17591): attention to the concept's tokens falls."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor
from torch import Tensor

from unlearn.concepts.concept import Concept
from unlearn.concepts.prompts import training_pairs
from unlearn.methods.base import UnlearningModule
from unlearn.methods.manual_steps import Batch
from unlearn.methods.options import MethodOptions, TrainingOptions
from unlearn.methods.plan import TrainingPlan
from unlearn.models.noise_schedule import add_noise
from unlearn.utils.options import option


@dataclass(frozen=True, kw_only=True)
class ForgetMeNotOptions(TrainingOptions):
    """Hold the options of `ForgetMeNot`."""

    lr: float = option(2e-6, at_least=0, help="learning rate (AdamW)", at_most=100)
    weight_decay: float = option(1e-2, at_least=0, help="weight decay of AdamW", at_most=100)


def token_positions(pipe: DiffusionPipeline, words: list[str], prompt: str) -> Tensor:
    """Return which tokens of a prompt belong to one of the words: flags (T,).

    Args:
        pipe: the pipeline whose tokenizer splits the prompt.
        words: the words to find; each can be several tokens.
        prompt: the prompt, of at most T tokens.

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
    """Yield a list that collects the attention probabilities of the UNet's forward passes.

    Each cross-attention adds one tensor (B * heads, h * w, T) a pass. Outside of the context the
    UNet computes attention as before.
    """
    maps: list[Tensor] = []
    layers = [m for m in unet.modules() if isinstance(m, Attention) and m.is_cross_attention]
    processors = [layer.processor for layer in layers]

    def record(layer: Any) -> None:
        # a method of the layer computes the probabilities, so a method of the instance sees them
        original = layer.get_attention_scores

        def scores(*args: Any, **kwargs: Any) -> Tensor:
            maps.append(original(*args, **kwargs))
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
    """Train the whole UNet to pay less attention to the target's tokens, on the target's images.

    Raises:
        ValueError: an option has none of its allowed values.

    Source: Zhang et al. 2024, section 3.2 (attention resteering).
    """

    Options: ClassVar[type[MethodOptions]] = ForgetMeNotOptions
    options: ForgetMeNotOptions
    of_unets = True
    images_of = "target"

    @classmethod
    def check_plan(cls, options: Any, plan: TrainingPlan) -> None:
        """Refuse gradient checkpointing too, which does not keep the forward pass's attentions.

        Raises:
            ValueError: names the key, the value and what is allowed.
        """
        super().check_plan(options, plan)
        if plan.gradient_checkpointing:
            raise ValueError(
                f"gradient_checkpointing=True: {cls.name} trains on the attentions of its "
                "forward pass, "
                "which checkpointing does not keep; take gradient_checkpointing=false"
            )

    @classmethod
    def samples(cls, options: Any, plan: TrainingPlan) -> tuple[float, float]:
        """Return how many samples a device's run takes through the network, see the base class.

        The method has no teacher, so no sample goes forward without gradient.
        """
        return 0, super().samples(options, plan)[1]

    def choose_weights(self) -> dict[str, Tensor]:
        """Return every weight of the UNet."""
        return dict(self.network.named_parameters())

    def prepare(self, pipe: DiffusionPipeline, concept: Concept) -> None:
        """Find where the target's tokens stand in each training prompt, see `token_positions`."""
        prompts = [target for _, target in training_pairs(concept)]
        flags = torch.stack([token_positions(pipe, concept.targets, p) for p in prompts])
        self.register_buffer("positions", flags, persistent=False)

    def configure_optimizers(self) -> Any:
        """Return AdamW for the trained weights."""
        options = self.options
        return torch.optim.AdamW(self.weights, options.lr, weight_decay=options.weight_decay)

    def loss(self, batch: Batch) -> Tensor:
        """Return the mean over the batch of ‖A‖₂, a 0-dim tensor.

        A holds the probabilities of the target's tokens in all cross-attentions for one sample.
        """
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
