"""Methods of sampling alone: a negative prompt, and SLD (Schramowski et al. 2023, 2211.05105)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from unlearn.concepts.concept import Concept
from unlearn.methods.base import UnlearningModule
from unlearn.models.text_states import encode_prompts, intercept_prompts, network_arguments


class NegativePrompt(UnlearningModule):
    """The targets are every prompt's negative prompt; no weight changes."""

    LACKS = ("accumulate_grad_batches",)
    AT_INFERENCE: ClassVar[dict[str, Any]] = {"text": str}
    closed_form = True

    @classmethod
    def check_run(cls, config: Any) -> None:
        """And guidance, without which there is no negative prompt."""
        super().check_run(config)
        if (guidance_scale := config.model.guidance_scale) <= 1:
            raise ValueError(
                f"model.guidance_scale={guidance_scale}: {config.method.name} needs more than 1"
            )

    def choose_weights(self) -> dict[str, Tensor]:
        """None."""
        return {}

    def prepare(self, pipe: DiffusionPipeline, concept: Concept) -> None:
        """The text to turn away from."""
        self.at_inference = {"text": ", ".join(concept.targets)}

    @staticmethod
    def install(
        pipe: DiffusionPipeline, weights: dict[str, Tensor], options: dict[str, Any]
    ) -> None:
        """The targets come before a prompt's own negative prompt."""
        text = options["text"]

        def join(asked: dict[str, Any]) -> None:
            prompt, negative = asked["prompt"], asked["negative_prompt"]
            if isinstance(prompt, str):
                asked["negative_prompt"] = ", ".join(filter(None, (text, negative)))
            else:
                own = negative if isinstance(negative, list) else [negative] * len(prompt)
                asked["negative_prompt"] = [", ".join(filter(None, (text, n))) for n in own]

        intercept_prompts(pipe, join)


class SLD(NegativePrompt):
    """Safe latent diffusion: guidance away from the targets, where the output goes towards them.

    Args:
        scale: s_S of the safety guidance.
        warmup_steps: δ, sampling steps without safety guidance.
        threshold: λ, under which the output counts as going towards the targets.
        momentum_scale: s_m.
        momentum_decay: β_m.

    Source: Schramowski et al. 2023, equations 3 to 8; the defaults are its Hyp-Medium.
    """

    AT_INFERENCE: ClassVar[dict[str, Any]] = {
        **NegativePrompt.AT_INFERENCE,
        **dict.fromkeys(("scale", "threshold", "momentum_scale", "momentum_decay"), float | int),
        "warmup_steps": int,
    }
    of_unets = True

    def __init__(
        self,
        *args: Any,
        scale: float = 1000.0,
        warmup_steps: int = 10,
        threshold: float = 0.01,
        momentum_scale: float = 0.3,
        momentum_decay: float = 0.4,
    ) -> None:
        super().__init__(*args)

    def prepare(self, pipe: DiffusionPipeline, concept: Concept) -> None:
        """The text to turn away from, and how."""
        super().prepare(pipe, concept)
        self.at_inference |= {k: v for k, v in self.hparams.items() if k not in self.LACKS}

    @staticmethod
    def install(
        pipe: DiffusionPipeline, weights: dict[str, Tensor], options: dict[str, Any]
    ) -> None:
        """The UNet's output for a prompt becomes safe before the pipeline guides by it."""
        SafetyGuidance(pipe, options)


class SafetyGuidance:
    """SLD's state within one sampling: the step and the momentum.

    The pipeline computes u + g (c - u) of the UNet's outputs u and c; with c - γ for c that is
    SLD's u + g (c - u - γ).

    Args:
        pipe: its UNet's outputs change, and each of its calls begins a sampling.
        options: "text", what to turn away from, and those of `SLD`.
    """

    def __init__(self, pipe: DiffusionPipeline, options: dict[str, Any]) -> None:
        self.options, self.states = options, encode_prompts(pipe, [options["text"]])
        self.step, self.momentum = 0, torch.zeros(())
        intercept_prompts(pipe, self.begin)
        pipe.unet.register_forward_hook(self.guide, with_kwargs=True)

    def begin(self, asked: dict[str, Any]) -> None:
        """A sampling begins.

        Raises:
            ValueError: it is without classifier-free guidance.
        """
        if not asked["do_classifier_free_guidance"]:
            raise ValueError("method.name='sld': needs classifier-free guidance, over 1")
        self.step, self.momentum = 0, torch.zeros(())

    def guide(self, unet: Any, args: Any, kwargs: Any, output: Any) -> Any:
        """A hook of the UNet, which sees the halves without and with the prompt in one batch."""
        without, with_text = output[0].chunk(2)
        inputs = args[0].chunk(2)[1]
        states = self.states.to(inputs).expand(len(inputs), -1, -1)
        unsafe = unet.forward(
            inputs, **network_arguments(unet, inputs, args[1], states)
        ).sample  # no hook
        gamma = self.safety(without, with_text, unsafe)
        return (torch.cat([without, with_text - gamma]), *output[1:])

    def safety(self, without: Tensor, with_text: Tensor, unsafe: Tensor) -> Tensor:
        """γ of this step, zero in the warm-up; the momentum moves on either way."""
        o = self.options
        difference = with_text - unsafe
        mu = (o["scale"] * difference.abs()).clamp(max=1)
        mu = torch.where(difference >= o["threshold"], 0, mu)
        gamma = mu * (unsafe - without) + o["momentum_scale"] * self.momentum.to(mu)
        decay = o["momentum_decay"]
        self.momentum = decay * self.momentum.to(mu) + (1 - decay) * gamma
        self.step += 1
        return gamma if self.step > o["warmup_steps"] else torch.zeros_like(gamma)
