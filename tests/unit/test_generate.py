"""Generation: an image depends on its prompt and seed, not on its batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from unlearn.backbone import load_pipeline
from unlearn.data import encode_prompts
from unlearn.generate import generate

PROMPTS = ["a panda", "a fox", "a bear"]


def test_an_image_does_not_depend_on_its_batch(random_model: Path) -> None:
    pipe = load_pipeline(str(random_model))
    together = generate(pipe, PROMPTS, [1, 2, 3], steps=2, guidance=6.0, batch_size=2)
    assert together.shape == (3, 3, 64, 64)
    assert together.dtype == torch.uint8
    again = generate(pipe, PROMPTS, [1, 2, 3], steps=2, guidance=6.0, batch_size=2)
    assert torch.equal(together, again)
    alone = generate(pipe, PROMPTS[2:], [3], steps=2, guidance=6.0, batch_size=4)
    assert (alone[0].int() - together[2].int()).abs().max() <= 1
    other = generate(pipe, PROMPTS[2:], [4], steps=2, guidance=6.0, batch_size=2)
    assert (other[0].int() - together[2].int()).abs().max() > 1


def test_prompts_over_the_token_limit_are_refused(random_model: Path) -> None:
    pipe = load_pipeline(str(random_model))
    assert encode_prompts(pipe, ["a panda", ""]).shape == (2, 32, 32)
    with pytest.raises(ValueError, match=r"has 42 tokens; the limit is 32"):
        encode_prompts(pipe, ["panda " * 40])


def test_an_unbuilt_embedded_model_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("unlearn.backbone.EMBEDDED", tmp_path)
    with pytest.raises(ValueError, match=r"model\.pretrained='emoji': .* not built yet"):
        load_pipeline("emoji")
