"""The residual: 1 for the base model, less where a weight moved towards the anchor."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from experiments.residual import PAIRS, TIMESTEPS, draw, residuals, seen_pairs, unseen_pairs
from tests.conftest import make_concept
from unlearn.concepts.prompts import training_pairs
from unlearn.config.compose import compose
from unlearn.config.parse import parse_config
from unlearn.generation.sampling import Sampler
from unlearn.models.cross_attention import cross_attention_layers
from unlearn.models.pipeline import load_pipeline

SAMPLER = Sampler(num_inference_steps=2, guidance_scale=6.0)


def test_the_base_model_leaves_all_of_the_target(random_model: Path, tmp_path: Path) -> None:
    base, other = load_pipeline(str(random_model)), load_pipeline(str(random_model))
    pairs = [("a bear", "a panda"), ("a cute bear", "a cute panda")]
    assert residuals(base, other, pairs, SAMPLER) == pytest.approx([1.0] * len(TIMESTEPS))
    for layer in cross_attention_layers(other.unet).values():
        layer.weight.data *= 1.5
    moved = residuals(base, other, pairs, SAMPLER)
    assert all(abs(share - 1) > 1e-3 for share in moved)
    draw({"a, seen prompts": moved, "a, unseen prompts": moved}, tmp_path / "curves.png")
    assert Image.open(tmp_path / "curves.png").size == (1050, 600)


@pytest.mark.parametrize(
    "concept",
    [make_concept("panda", "bear"), make_concept("noto", "flat", "style")],
    ids=lambda c: c.name,
)
def test_pairs_are_trained_ones_and_unseen_ones(concept: object) -> None:
    trained = set(training_pairs(concept))
    assert set(seen_pairs(concept)) <= trained
    assert not set(unseen_pairs(concept)) & trained
    for pairs in (seen_pairs(concept), unseen_pairs(concept)):
        assert 8 <= len(pairs) <= PAIRS
        assert all(anchor != target for anchor, target in pairs)


def test_every_target_of_a_group_has_its_share_of_the_pairs() -> None:
    concept = parse_config(compose(["concept=unsafe"])).concept
    for pairs in (seen_pairs(concept), unseen_pairs(concept)):
        shown = [sum(target in prompt for _, prompt in pairs) for target in concept.targets]
        assert sum(shown) == len(pairs) == PAIRS
        assert max(shown) - min(shown) <= 1


def test_a_random_seed_does_not_matter(random_model: Path) -> None:
    base = load_pipeline(str(random_model))
    other = load_pipeline(str(random_model))
    next(iter(cross_attention_layers(other.unet).values())).weight.data *= 2
    pairs = [("a bear", "a panda")]
    torch.manual_seed(0)
    first = residuals(base, other, pairs, SAMPLER)
    torch.manual_seed(1)
    assert residuals(base, other, pairs, SAMPLER) == first
