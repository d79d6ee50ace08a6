"""The options of the methods with a concept-preserving gradient."""

from __future__ import annotations

from dataclasses import dataclass

from unlearn.methods.options import TrainingOptions
from unlearn.methods.surgery import GRANULARITIES
from unlearn.utils.options import option

SURGERIES = ("gradient", "update", "unlearn_only", "sum", "weighted_sum")


@dataclass(frozen=True, kw_only=True)
class ConceptPreservingOptions(TrainingOptions):
    """Hold the options of `ConceptPreserving`."""

    lr: float = option(
        1e-4, at_least=0, help="learning rate of the keys and values (AdamW)", at_most=100
    )
    strength: float = option(1.0, at_least=0, help="λ of the projection", at_most=1000)
    granularity: str = option(
        "tensor",
        choices=GRANULARITIES,
        help="what is projected by itself: each tensor, each layer, or all as one",
    )
    surgery: str = option(
        "gradient",
        choices=SURGERIES,
        help="what is projected: the gradient before AdamW (as the paper), AdamW's update, or "
        "nothing: g_u alone, g_u + g_r, or g_u + 0.1 g_r (the reference without surgery)",
    )
    relearn_target: str = option(
        "noise",
        choices=("noise", "teacher"),
        help="what relearning regresses to: the training target (as the paper) or the base "
        "model's output",
    )
    lr_schedule: str = option(
        "constant",
        choices=("constant", "cosine"),
        help="constant (as the paper), or a cosine from lr to zero, which damps the last "
        "oscillations of the adversarial game",
    )
    weight_decay: float = option(1e-2, at_least=0, help="weight decay of AdamW", at_most=100)
    start: str = option(
        "base",
        choices=("base", "closed_form"),
        help="where training begins: at the base model (as the paper), or at the keys and values "
        "that map the targets' prompts to the anchors' by least squares; of UNets alone",
    )
    contexts: int = option(
        0,
        at_least=0,
        help="for a closed-form start: the pairs that also count before and after a relearn prompt",
        at_most=10_000,
    )
    detach_first_token: bool = option(
        False, help="give the first text token's key and value no gradient, as the reference does"
    )
