"""The delta: exact round trip into a plain pipeline; any other base is refused untouched."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file

import unlearn
from tests.helpers.weights import weights_of
from unlearn.models.cross_attention import cross_attention_layers
from unlearn.models.pipeline import load_pipeline
from unlearn.weights.delta import save_unlearned


def test_round_trip_changes_exactly_the_saved_weights(random_model: Path, tmp_path: Path) -> None:
    pipe = load_pipeline(str(random_model))
    before = weights_of(pipe)
    layers = cross_attention_layers(pipe.unet)
    delta = {f"{n}.weight": layer.weight + 1 for n, layer in layers.items()}
    save_unlearned(delta, tmp_path / "unlearned.safetensors", {"concept": "panda"})
    plain = StableDiffusionPipeline.from_pretrained(random_model, safety_checker=None)
    assert unlearn.load_unlearned(plain, tmp_path / "unlearned.safetensors") is plain
    after = weights_of(plain)
    for name, tensor in before.items():
        expected = tensor + 1 if name in delta else tensor
        torch.testing.assert_close(after[name], expected, rtol=0, atol=0)
    assert [p.name for p in tmp_path.iterdir()] == ["unlearned.safetensors"]


@pytest.mark.parametrize(
    ("tensor_of", "name", "message"),
    [
        (lambda w: w, "unet.nowhere.weight", "nowhere.weight is not a weight"),
        (lambda w: w[:1], None, "has shape .* made for another base"),
        (lambda w: w * float("nan"), None, "not finite"),
    ],
)
def test_other_weights_are_refused(random_model, tmp_path, tensor_of, name, message) -> None:
    pipe = load_pipeline(str(random_model))
    before = weights_of(pipe)
    names = list(cross_attention_layers(pipe.unet))
    good = {f"unet.{names[0]}.weight": before[f"{names[0]}.weight"] + 1}
    bad_name = f"unet.{names[1]}.weight"
    bad = tensor_of(before[f"{names[1]}.weight"]).contiguous()
    save_file({**good, name or bad_name: bad}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=message):
        unlearn.load_unlearned(pipe, tmp_path / "other.safetensors")
    for key, tensor in weights_of(pipe).items():
        assert torch.equal(tensor, before[key])
