"""UCE against a direct solve, and what it promises of the model's outputs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.conftest import make_concept
from unlearn.concepts.vocabulary import fill_template, load_vocabulary
from unlearn.methods.uce import (
    UCE,
    UCEOptions,
    edit_matrix,
    last_tokens,
    prompt_states,
    token_states,
)
from unlearn.models.noise_schedule import NoiseSchedule
from unlearn.models.pipeline import load_pipeline
from unlearn.models.text_states import encode_prompts


def test_the_closed_form_minimises_its_objective() -> None:
    """The gradient of Σ_e |W e - W0 g|² + Σ_p |W p - W0 p|² + λ |W - W0|² is zero at W0 M."""
    torch.manual_seed(0)
    edited, guides, kept = (torch.randn(n, 6, dtype=torch.float64) for n in (3, 3, 4))
    before = torch.randn(5, 6, dtype=torch.float64)
    after = (before @ edit_matrix(edited, guides, kept, 0.3)).requires_grad_()
    objective = (
        (edited @ after.T - guides @ before.T).square().sum()
        + (kept @ after.T - kept @ before.T).square().sum()
        + 0.3 * (after - before).square().sum()
    )
    (slope,) = torch.autograd.grad(objective, after)
    assert slope.abs().max() < 1e-12
    assert (after - before).abs().max() > 0.1


def test_an_edit_equals_the_published_solve_of_each_layer(random_model: Path) -> None:
    """W = (λW0 + Σ_e v* cᵀ + Σ_p W0 c_p c_pᵀ)(λI + Σ_e c cᵀ + Σ_p c_p c_pᵀ)⁻¹, written out."""
    pipe, concept = load_pipeline(str(random_model)), make_concept("panda", "bear")
    states = {n: encode_prompts(pipe, [n])[0, 1] for n in ("panda", "bear", *concept.neighbours)}
    uce = UCE(
        pipe.unet, NoiseSchedule.from_scheduler(pipe.scheduler), UCEOptions(regularization=0.5)
    )
    uce.prepare(pipe, concept)
    for before, after in zip(uce.base, uce.weights, strict=True):
        eye = torch.eye(before.shape[1])
        left = 0.5 * before + torch.outer(before @ states["bear"], states["panda"])
        right = 0.5 * eye + torch.outer(states["panda"], states["panda"])
        for name in concept.neighbours:
            left += torch.outer(before @ states[name], states[name])
            right += torch.outer(states[name], states[name])
        torch.testing.assert_close(after, left @ torch.linalg.inv(right), rtol=1e-3, atol=1e-4)


def test_editing_prompts_makes_targets_draw_like_their_anchors() -> None:
    """On the embedded model: an untrained text encoder tells too little apart to edit it."""
    pipe, concept = load_pipeline("emoji"), make_concept("contrast", "flat", kind="style")
    options = UCEOptions(edits="prompts", regularization=1e-3)
    uce = UCE(pipe.unet, NoiseSchedule.from_scheduler(pipe.scheduler), options)
    uce.prepare(pipe, concept)
    edited, guides, kept = prompt_states(pipe, concept)
    for before, after in zip(uce.base, [w.detach() for w in uce.weights], strict=True):
        wanted, was = guides @ before.T, edited @ before.T
        assert (edited @ after.T - wanted).norm() < 0.5 * (was - wanted).norm()
        stay = kept @ before.T
        assert (kept @ after.T - stay).norm() < 0.1 * stay.norm()


def test_in_context_the_edit_holds_in_prompts_that_go_on() -> None:
    """Keys and values of unseen prompts come nearer to the anchor's, and others move no more.

    On the embedded model: "the best tiger ever on a purple background" for a horse.
    """
    pipe, concept, words = load_pipeline("emoji"), make_concept("tiger", "horse"), load_vocabulary()
    weights = torch.cat(
        UCE(pipe.unet, NoiseSchedule.from_scheduler(pipe.scheduler), UCEOptions()).base
    )
    unseen = [f"{t} on a {c} background" for t in concept.unseen for c in words.backgrounds]
    target, anchor, far = (
        torch.cat(
            [token_states(pipe, [fill_template(u, n) for u in unseen]) for n in names]
        ).double()
        for names in (["tiger"], ["horse"], concept.unrelated)
    )

    def size(states: Tensor) -> float:
        return float((states @ weights.T.double()).norm())

    def left(contexts: int) -> tuple[float, float]:
        matrix = edit_matrix(*prompt_states(pipe, concept, contexts))
        return size(target @ matrix.T - anchor), size(far @ matrix.T - far)

    (shown, moved), (shown_before, moved_before) = left(64), left(0)
    assert shown < 0.8 * shown_before < 0.5 * size(target - anchor)
    assert moved < 1.2 * moved_before


def test_a_name_s_last_token_is_its_own(random_model: Path) -> None:
    pipe = load_pipeline(str(random_model))
    states = encode_prompts(pipe, ["panda", "a photo of a panda", ""])
    ids = pipe.tokenizer("a photo of a panda").input_ids
    expected = torch.stack([states[0, 1], states[1, len(ids) - 2], states[2, 0]])
    assert torch.equal(last_tokens(pipe, ["panda", "a photo of a panda", ""]), expected)
    assert last_tokens(pipe, []).shape == (0, expected.shape[1])  # nothing is to be kept


def test_bad_options_are_refused(random_model: Path) -> None:
    pipe = load_pipeline(str(random_model))
    with pytest.raises(ValueError, match=r"method\.edits='words' is unknown"):
        UCE(pipe.unet, NoiseSchedule.from_scheduler(pipe.scheduler), UCEOptions(edits="words"))
    with pytest.raises(ValueError, match=r"method\.regularization=0"):
        UCE(pipe.unet, NoiseSchedule.from_scheduler(pipe.scheduler), UCEOptions(regularization=0))
