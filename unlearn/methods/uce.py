"""UCE, unified concept editing (Gandikota et al. 2024, arXiv 2308.14761): a closed form."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from unlearn.concepts.concept import Concept
from unlearn.concepts.prompts import pairs_in_context, relearn_prompts, training_pairs
from unlearn.methods.base import UnlearningModule
from unlearn.models.pipeline import denoiser
from unlearn.models.text_states import encode_prompts, unpack_text


def edit_matrix(
    edited: Tensor, guides: Tensor, kept: Tensor, regularization: float = 0.5
) -> Tensor:
    """M (D, D), float64, so that W = W0 M is the closed form for every W0.

    M = (λI + Σ_e g eᵀ + Σ_p p pᵀ)(λI + Σ_e e eᵀ + Σ_p p pᵀ)⁻¹.

    Args:
        edited: text states e (N, D) whose keys and values become those of the guides.
        guides: text states g (N, D), one for each edited one.
        kept: text states p (P, D) whose keys and values stay.
        regularization: λ, which holds everything else where it was.

    Source: Gandikota et al. 2024, equation 7, with v* = W0 g.
    """
    e, g, p = edited.double(), guides.double(), kept.double()
    held = regularization * torch.eye(e.shape[1], dtype=torch.float64, device=e.device) + p.T @ p
    return torch.linalg.solve(held + e.T @ e, held + g.T @ e, left=False)


def token_states(pipe: DiffusionPipeline, prompts: list[str]) -> Tensor:
    """The states (P, T, D) of the prompts' tokens up to the limit; keys and values are of them."""
    return unpack_text(denoiser(pipe), encode_prompts(pipe, prompts, cut=True))[0]


def prompt_states(
    pipe: DiffusionPipeline, concept: Concept, contexts: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """All tokens of the target prompts and of the anchor prompts that methods train on, and of the
    relearn prompts: states (N, D), (N, D) and (P, D); with those of `pairs_in_context`.
    """
    pairs, kept = pairs_in_context(concept, contexts)
    guides, edited = map(list, zip(*training_pairs(concept), *pairs, strict=True))
    texts = (edited, guides, relearn_prompts(concept) + kept)
    return tuple(token_states(pipe, t).flatten(0, 1) for t in texts)  # type: ignore[return-value]


def name_states(pipe: DiffusionPipeline, concept: Concept) -> tuple[Tensor, Tensor, Tensor]:
    """The last tokens of the targets, of their anchors and of the neighbours, bare names."""
    words = (concept.targets, list(concept.anchors.values()), concept.neighbours)
    return tuple(last_tokens(pipe, names) for names in words)  # type: ignore[return-value]


def last_tokens(pipe: DiffusionPipeline, names: list[str]) -> Tensor:
    """The text state of each name's last token (N, D); of an empty name, the start token's."""
    if not names:
        return token_states(pipe, [""])[0, :0]
    lengths: Any = pipe.tokenizer(names).input_ids
    last = torch.tensor([len(ids) - 2 for ids in lengths])
    return token_states(pipe, names)[torch.arange(len(names)), last]


EDITS = {"names": name_states, "prompts": prompt_states}


class UCE(UnlearningModule):
    """Keys and values for the target become those for the anchor, by one solve; no training.

    Args:
        edits: "names" (as the paper): the last token of each target's bare name becomes that of
            its anchor's, and those of the neighbours stay; "prompts": all tokens of the prompts
            that other methods train on, and those of their relearn prompts stay.
        regularization: λ.

    Raises:
        ValueError: an option has none of its allowed values.
    """

    LACKS = ("accumulate_grad_batches",)
    CHOICES: ClassVar[dict[str, tuple[str, ...]]] = {"edits": tuple(EDITS)}
    POSITIVE = ("regularization",)
    closed_form = True
    of_unets = True  # elsewhere keys and values are not of the text states themselves

    def __init__(self, *args: Any, edits: str = "names", regularization: float = 0.5) -> None:
        super().__init__(*args)

    @torch.no_grad()
    def prepare(self, pipe: DiffusionPipeline, concept: Concept) -> None:
        """Solve, and change the weights."""
        hp = self.hparams
        matrix = edit_matrix(*EDITS[hp.edits](pipe, concept), hp.regularization)
        for weight in self.weights:
            weight.copy_(weight.double() @ matrix)
