"""A negative prompt: the pipeline's own guidance away from a text."""

from __future__ import annotations

from typing import Any, ClassVar

from diffusers import DiffusionPipeline
from torch import Tensor

from unlearn.concepts.concept import Concept
from unlearn.methods.base import UnlearningModule
from unlearn.methods.plan import TrainingPlan
from unlearn.models.text_states import intercept_prompts


class NegativePrompt(UnlearningModule):
    """Make the targets every prompt's negative prompt; no weight changes."""

    AT_INFERENCE: ClassVar[dict[str, Any]] = {"text": str}
    closed_form = True

    @classmethod
    def check_plan(cls, options: Any, plan: TrainingPlan) -> None:
        """Refuse a guidance scale without effect too: a negative prompt acts by guidance alone.

        Raises:
            ValueError: names the key, the value and what is allowed.
        """
        super().check_plan(options, plan)
        if plan.guidance_scale <= 1:
            raise ValueError(
                f"model.guidance_scale={plan.guidance_scale}: {cls.name} needs more than 1"
            )

    def choose_weights(self) -> dict[str, Tensor]:
        """Return no weights, since none trains."""
        return {}

    def prepare(self, pipe: DiffusionPipeline, concept: Concept) -> None:
        """Take the text to guide away from: the concept's targets."""
        self.at_inference = {"text": ", ".join(concept.targets)}

    @staticmethod
    def install(
        pipe: DiffusionPipeline, weights: dict[str, Tensor], at_inference: dict[str, Any]
    ) -> None:
        """Put the targets before every prompt's own negative prompt.

        Args:
            pipe: the pipeline, which changes in place.
            weights: empty.
            at_inference: "text", what to guide away from.
        """
        text = at_inference["text"]

        def join(asked: dict[str, Any]) -> None:
            prompt, negative = asked["prompt"], asked["negative_prompt"]
            if isinstance(prompt, str):
                asked["negative_prompt"] = ", ".join(filter(None, (text, negative)))
            else:
                own = negative if isinstance(negative, list) else [negative] * len(prompt)
                asked["negative_prompt"] = [", ".join(filter(None, (text, n))) for n in own]

        intercept_prompts(pipe, join)
