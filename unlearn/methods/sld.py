"""SLD, safe latent diffusion (Schramowski et al. 2023, arXiv 2211.05105)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from unlearn.concepts.concept import Concept
from unlearn.methods.negative_prompt import NegativePrompt
from unlearn.methods.options import MethodOptions
from unlearn.models.text_states import encode_prompts, intercept_prompts, network_arguments
from unlearn.utils.options import option


@dataclass(frozen=True, kw_only=True)
class SLDOptions(MethodOptions):
    """Hold the options of `SLD`; the defaults are the paper's Hyp-Medium."""

    scale: float = option(
        1000.0, at_least=0, help="s_S, scale of the safety guidance", at_most=10**5
    )
    warmup_steps: int = option(
        10, at_least=0, help="δ, sampling steps without safety guidance", at_most=10**8
    )
    threshold: float = option(
        0.01,
        at_least=0,
        help="λ, under which the output counts as going towards the targets",
        at_most=100,
    )
    momentum_scale: float = option(0.3, at_least=0, help="s_m, scale of the momentum", at_most=100)
    momentum_decay: float = option(0.4, at_least=0, help="β_m, decay of the momentum", at_most=1)


class SLD(NegativePrompt):
    """Guide away from the targets where the output goes towards them; no weight changes.

    Raises:
        ValueError: an option is out of its range.

    Source: Schramowski et al. 2023, equations 3 to 8.
    """

    Options: ClassVar[type[MethodOptions]] = SLDOptions
    options: SLDOptions
    AT_INFERENCE: ClassVar[dict[str, Any]] = {
        **NegativePrompt.AT_INFERENCE,
        **dict.fromkeys(("scale", "threshold", "momentum_scale", "momentum_decay"), float | int),
        "warmup_steps": int,
    }
    of_unets = True

    def prepare(self, pipe: DiffusionPipeline, concept: Concept) -> None:
        """Take the text to guide away from, and the options of the guidance."""
        super().prepare(pipe, concept)
        self.at_inference |= asdict(self.options)

    @staticmethod
    def install(
        pipe: DiffusionPipeline, weights: dict[str, Tensor], at_inference: dict[str, Any]
    ) -> None:
        """Make the UNet's output for a prompt safe before the pipeline guides by it.

        Args:
            pipe: the pipeline, which changes in place.
            weights: empty.
            at_inference: "text", what to guide away from, and the options of `SLD`.
        """
        SafetyGuidance(pipe, at_inference)


class SafetyGuidance:
    """Change a UNet's outputs by SLD, and keep the step and the momentum of one sampling.

    The pipeline computes u + g (c - u) from the UNet's outputs u and c. With c - γ in place of c,
    this is SLD's u + g (c - u - γ).

    Args:
        pipe: the pipeline whose UNet's outputs change. Each of its calls begins a sampling.
        options: "text", what to guide away from, and the options of `SLD`.
    """

    def __init__(self, pipe: DiffusionPipeline, options: dict[str, Any]) -> None:
        self.options, self.states = options, encode_prompts(pipe, [options["text"]])
        self.step, self.momentum = 0, torch.zeros(())
        intercept_prompts(pipe, self.begin)
        pipe.unet.register_forward_hook(self.guide, with_kwargs=True)

    def begin(self, asked: dict[str, Any]) -> None:
        """Begin a sampling: set the step and the momentum to zero.

        Args:
            asked: the arguments of the pipeline's `encode_prompt`.

        Raises:
            ValueError: the sampling is without classifier-free guidance.
        """
        if not asked["do_classifier_free_guidance"]:
            raise ValueError("method.name='sld': needs classifier-free guidance, over 1")
        self.step, self.momentum = 0, torch.zeros(())

    def guide(self, unet: Any, args: Any, kwargs: Any, output: Any) -> Any:
        """Return the UNet's output, with γ taken from the half with the prompt; a forward hook.

        One batch holds the half without the prompt, then the half with it.
        """
        without, with_text = output[0].chunk(2)
        inputs = args[0].chunk(2)[1]
        states = self.states.to(inputs).expand(len(inputs), -1, -1)
        given = network_arguments(unet, inputs, args[1], states)
        unsafe = unet.forward(inputs, **given).sample  # `forward` calls no hook
        gamma = self.safety(without, with_text, unsafe)
        return (torch.cat([without, with_text - gamma]), *output[1:])

    def safety(self, without: Tensor, with_text: Tensor, unsafe: Tensor) -> Tensor:
        """Return γ of this step (B, C, h, w), zero in the warm-up, and move the momentum on.

        Args:
            without: the UNet's output without a prompt, (B, C, h, w).
            with_text: its output for the prompt, (B, C, h, w).
            unsafe: its output for the targets, (B, C, h, w).
        """
        o = self.options
        difference = with_text - unsafe
        mu = (o["scale"] * difference.abs()).clamp(max=1)
        mu = torch.where(difference >= o["threshold"], 0, mu)
        gamma = mu * (unsafe - without) + o["momentum_scale"] * self.momentum.to(mu)
        decay = o["momentum_decay"]
        self.momentum = decay * self.momentum.to(mu) + (1 - decay) * gamma
        self.step += 1
        return gamma if self.step > o["warmup_steps"] else torch.zeros_like(gamma)
