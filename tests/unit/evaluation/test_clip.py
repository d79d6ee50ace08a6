"""CLIP features and scores, against a forward pass of the shipped CLIP and by hand."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer, CLIPModel

from unlearn.evaluation.clip import ClipScorer, clip_choices, clip_errors, clip_scores
from unlearn.utils.paths import EMBEDDED

SHEET = Image.open(EMBEDDED / "samples.png").convert("RGB")  # a row a style, tiles of 64 pixels
PANDA, APPLE, STRAWBERRY = 0, 6, 7  # its columns


def tiles(column: int) -> list[Image.Image]:
    left = 64 * column
    return [SHEET.crop((left, 64 * row, left + 64, 64 * row + 64)) for row in range(8)]


def as_tensor(images: list[Image.Image]) -> Tensor:
    return torch.stack([torch.from_numpy(np.array(i)).permute(2, 0, 1) for i in images])


@pytest.fixture(scope="module")
def scorer() -> ClipScorer:
    return ClipScorer.load("emoji")


def test_scores_are_those_of_a_forward_pass(scorer: ClipScorer) -> None:
    images = [SHEET.crop((64 * i, 0, 64 * i + 100, 80)) for i in range(5)]  # to be resized
    texts = ["a panda", "an apple on a blue background", "", "a strawberry", "x"]
    pixels = torch.stack(
        [
            torch.from_numpy(np.array(i.resize((64, 64), Image.Resampling.BICUBIC))) / 127.5 - 1
            for i in images
        ]
    ).permute(0, 3, 1, 2)
    clip = CLIPModel.from_pretrained(EMBEDDED / "clip", dtype=torch.float32)
    tokens = AutoTokenizer.from_pretrained(EMBEDDED / "clip")(
        texts, padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        logits = clip(pixel_values=pixels, **tokens).logits_per_image / clip.logit_scale.exp()
    expected = 250 * logits.clamp(min=0)
    found = scorer.image_features(as_tensor(images)), scorer.text_features(texts)
    assert torch.allclose(clip_scores(*found), expected.diag(), atol=1e-3)
    for i in range(5):
        assert torch.allclose(clip_scores(found[0], found[1][i : i + 1]), expected[:, i], atol=1e-3)
    assert expected.min() == 0 < expected.max()  # clamped and unclamped pairs


def test_features_are_unit_vectors_without_a_graph(scorer: ClipScorer) -> None:
    found = scorer.image_features(as_tensor(tiles(PANDA))), scorer.text_features(["a", "b"])
    assert [tuple(f.shape) for f in found] == [(8, 128), (2, 128)]
    for features in found:
        assert features.dtype == torch.float32
        assert not features.requires_grad
        assert torch.allclose(features.norm(dim=-1), torch.ones(len(features)))


def test_a_row_depends_on_its_own_input_alone(scorer: ClipScorer) -> None:
    images = as_tensor(tiles(APPLE))
    alone = torch.cat([scorer.image_features(i[None]) for i in images])
    assert torch.allclose(scorer.image_features(images, batch_size=3), alone, atol=1e-5)
    texts = ["a panda", "a picture of a red panda on a blue background", "", "panda " * 100]
    alone = torch.cat([scorer.text_features([t]) for t in texts])
    assert torch.allclose(scorer.text_features(texts, batch_size=3), alone, atol=1e-5)


def test_real_images_are_told_apart(scorer: ClipScorer) -> None:
    features = scorer.image_features(as_tensor(tiles(PANDA) + tiles(STRAWBERRY)))
    panda, strawberry = scorer.text_features(["a panda", "a strawberry"]).split(1)
    assert clip_choices(features, panda, strawberry).tolist() == [True] * 8 + [False] * 8


def test_scores_by_hand() -> None:
    image = torch.tensor([[1.0, 0.0], [0.6, 0.8], [-1.0, 0.0]])
    text = torch.tensor([[1.0, 0.0]])
    assert clip_scores(image, text).tolist() == pytest.approx([250, 150, 0])
    pairs = torch.tensor([[0.0, 1.0], [0.0, 1.0], [-0.8, 0.6]])
    assert clip_scores(image, pairs).tolist() == pytest.approx([0, 200, 200])


def test_errors_and_choices_by_hand() -> None:
    image = torch.tensor([[1.0, 0.0], [0.6, 0.8], [-1.0, 0.0], [-0.6, -0.8]])
    concept, other = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    assert clip_choices(image, concept, other).tolist() == [True, False, False, False]
    assert clip_errors(image, concept, other).tolist() == [False, True, True, True]  # ties too
    assert clip_errors(image, concept, concept).all()


def test_names_for_tables(scorer: ClipScorer) -> None:
    assert scorer.name == "emoji"
    assert ClipScorer.load(str(EMBEDDED / "clip")).name == "clip"


def test_what_is_no_clip_is_refused(tmp_path: Path) -> None:
    for missing in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match=r"^evaluation\.clip='.*CLIP in safetensors"):
            ClipScorer.load(str(missing))


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    shutil.copytree(EMBEDDED / "clip", tmp_path, dirs_exist_ok=True)
    weights = tmp_path / "model.safetensors"
    torch.save(load_file(weights), tmp_path / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(ValueError, match=r"^evaluation\.clip="):
        ClipScorer.load(str(tmp_path))


def test_weights_that_would_be_random_are_refused(tmp_path: Path) -> None:
    shutil.copytree(EMBEDDED / "clip", tmp_path, dirs_exist_ok=True)
    state = load_file(tmp_path / "model.safetensors")
    kept = {k: v for k, v in state.items() if not k.startswith("vision_model")}
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    count = len(state) - len(kept)
    with pytest.raises(ValueError, match=rf"lacks {count} weights, such as 'vision_model\."):
        ClipScorer.load(str(tmp_path))
