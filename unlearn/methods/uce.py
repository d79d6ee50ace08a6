"""UCE, unified concept editing (Gandikota et al. 2024, arXiv 2308.14761): a closed form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from unlearn.concepts.concept import Concept
from unlearn.concepts.prompts import pairs_beside_relearn_prompts, relearn_prompts, training_pairs
from unlearn.methods.base import UnlearningModule
from unlearn.methods.options import MethodOptions
from unlearn.models.pipeline import get_denoiser
from unlearn.models.text_states import encode_prompts, unpack_text
from unlearn.utils.options import option


def edit_matrix(
    edited: Tensor, guides: Tensor, kept: Tensor, regularization: float = 0.5
) -> Tensor:
    """Return M (D, D), float64, so that W = W0 M is the closed form for every W0.

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
    """Return the states (P, T, D) of the prompts' tokens, which keys and values are computed from.

    A prompt over the token limit is cut.
    """
    return unpack_text(get_denoiser(pipe), encode_prompts(pipe, prompts, cut=True))[0]


def prompt_states(
    pipe: DiffusionPipeline, concept: Concept, contexts: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the states of all tokens of the prompts that methods train on.

    Args:
        pipe: the pipeline whose text encoder makes the states.
        concept: the concept, which has the prompts.
        contexts: how many pairs also count before and after a relearn prompt, see
            `pairs_beside_relearn_prompts`.

    Returns:
        The states of the target prompts (N, D), of the anchor prompts (N, D), and of the relearn
        prompts (P, D).
    """
    pairs, kept = pairs_beside_relearn_prompts(concept, contexts)
    guides, edited = map(list, zip(*training_pairs(concept), *pairs, strict=True))
    texts = (edited, guides, relearn_prompts(concept) + kept)
    return tuple(token_states(pipe, t).flatten(0, 1) for t in texts)  # type: ignore[return-value]


def name_states(pipe: DiffusionPipeline, concept: Concept) -> tuple[Tensor, Tensor, Tensor]:
    """Return the states of the last tokens of the concept's bare names.

    Returns:
        The states of the targets (N, D), of their anchors (N, D), and of the neighbours (P, D).
    """
    words = (concept.targets, list(concept.anchors.values()), concept.neighbours)
    return tuple(last_tokens(pipe, names) for names in words)  # type: ignore[return-value]


def last_tokens(pipe: DiffusionPipeline, names: list[str]) -> Tensor:
    """Return the state of each name's last token (N, D); of an empty name, the start token's."""
    if not names:
        return token_states(pipe, [""])[0, :0]
    lengths: Any = pipe.tokenizer(names).input_ids
    last = torch.tensor([len(ids) - 2 for ids in lengths])
    return token_states(pipe, names)[torch.arange(len(names)), last]


EDITS = {"names": name_states, "prompts": prompt_states}


@dataclass(frozen=True, kw_only=True)
class UCEOptions(MethodOptions):
    """Hold the options of `UCE`."""

    edits: str = option(
        "names",
        choices=tuple(EDITS),
        help="what is edited and kept: the last tokens of the bare names (as the paper), or all "
        "tokens of the prompts that other methods train on",
    )
    regularization: float = option(
        0.5, above=0, help="λ, which holds the weights where they were", at_most=10**6
    )


class UCE(UnlearningModule):
    """Map keys and values of the target to those of the anchor, by one solve without training.

    With `edits` "names", the last token of each target's name becomes that of its anchor's name,
    and those of the neighbours stay. With "prompts", all tokens of the target prompts become those
    of the anchor prompts, and those of the relearn prompts stay.

    Raises:
        ValueError: an option has none of its allowed values.

    Source: Gandikota et al. 2024, equation 7.
    """

    Options: ClassVar[type[MethodOptions]] = UCEOptions
    options: UCEOptions
    closed_form = True
    of_unets = True  # elsewhere keys and values are not of the text states themselves

    @torch.no_grad()
    def prepare(self, pipe: DiffusionPipeline, concept: Concept) -> None:
        """Solve for the edit, and change the weights by it."""
        states = EDITS[self.options.edits](pipe, concept)
        matrix = edit_matrix(*states, self.options.regularization)
        for weight in self.weights:
            weight.copy_(weight.double() @ matrix)
