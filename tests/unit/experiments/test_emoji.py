"""The embedded model's data: compositions, captions and tokenizer, without fetching any art."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file, save_file

from experiments.emoji import build
from experiments.emoji.art import rasterise, svg
from experiments.emoji.build import EpochSteps, fit
from experiments.emoji.compose import caption, compose
from experiments.emoji.judge import JudgeStage, SecondJudgeStage
from experiments.emoji.tokenizer import TOKENS, train_tokenizer
from experiments.emoji.vae import VAEStage
from unlearn.concepts.vocabulary import load_vocabulary
from unlearn.utils.paths import EMBEDDED

WORDS = load_vocabulary()
ART = torch.randint(
    256, (len(WORDS.styles), len(WORDS.objects), 4, 64, 64), dtype=torch.uint8,
    generator=torch.Generator().manual_seed(0),
)  # fmt: skip


def small(folder: Path, **settings: object) -> DictConfig:
    """The build's config at a tiny size, with its cache and its output in a folder."""
    config = OmegaConf.load(Path(build.__file__).parent / "conf" / "build.yaml")
    own = {"stage": "vae", "cache": str(folder), "output": str(folder), "latents": 128, "epoch": 1,
           "vae": {"steps": 2, "batch": 2}, "judge": {"decoded": 2}}  # fmt: skip
    merged = OmegaConf.merge(config, own, settings)
    assert isinstance(merged, DictConfig)
    return merged


def test_compositions_are_seeded_and_show_the_named_background() -> None:
    art = torch.zeros(len(WORDS.styles), len(WORDS.objects), 4, 64, 64, dtype=torch.uint8)
    art[:, :, 0] = art[:, :, 3] = 255  # a red square fills each icon
    first, again = (compose(art, WORDS, 8, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first.images, again.images)
    colours = torch.tensor(list(WORDS.backgrounds.values())) / 127.5 - 1
    for image, background in zip(first.images, first.backgrounds, strict=True):
        colour = colours[background]
        assert any(torch.allclose(image[:, y, x], colour) for y in (0, 63) for x in (0, 63))
        torch.testing.assert_close(image[:, 32, 32], torch.tensor([1.0, -1.0, -1.0]))


def test_icons_are_drawn_upright_with_their_aliases() -> None:
    icons = {
        "width": 10,
        "height": 10,
        "icons": {"top": {"body": '<rect width="10" height="5" fill="#00f"/>'}},
        "aliases": {"other": {"parent": "top"}},
    }
    image = rasterise(svg(icons, "other"))
    assert image.shape == (4, 64, 64)
    assert image[:, 16, 32].tolist() == [0, 0, 255, 255]
    assert image[3, 48, 32] == 0


@pytest.mark.parametrize("seed", range(3))
def test_captions_name_what_they_are_given(seed: int) -> None:
    rng = random.Random(seed)
    for name, entry in WORDS.objects.items():
        text = caption(WORDS, name, "noto", "blue", rng)
        assert any(noun in text for noun in (name, *entry.synonyms))
        assert "noto" in text
        assert "blue" in text


def test_the_tokenizer_knows_every_caption_within_its_length(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(WORDS, tmp_path / "tokenizer")
    rng = random.Random(0)
    texts = [caption(WORDS, n, "emojione", "purple", rng) for n in WORDS.names for _ in range(3)]
    for text, ids in zip(texts, tokenizer(texts).input_ids, strict=True):
        assert len(ids) <= TOKENS
        squeezed = tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "")
        assert squeezed == text.replace(" ", "")


def test_every_epoch_goes_on_where_the_last_one_ended() -> None:
    steps = EpochSteps(3)
    assert list(steps) == [0, 1, 2]
    steps.set_epoch(4)
    assert list(steps) == [12, 13, 14]


@pytest.mark.slow
def test_latents_are_those_of_the_vae_and_both_judges_share_them(tmp_path: Path) -> None:
    shutil.copytree(EMBEDDED / "vae", tmp_path / "vae")
    first = JudgeStage(small(tmp_path), ART, WORDS)
    second = SecondJudgeStage(small(tmp_path), ART, WORDS)
    assert first.pool_key == second.pool_key
    assert len(list(tmp_path.glob("*.safetensors"))) == 2  # latents, and some of them decoded
    weights = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    rebuilt = {name: 1.5 * weight for name, weight in load_file(weights).items()}
    save_file(rebuilt, weights, metadata={"format": "pt"})
    third = JudgeStage(small(tmp_path), ART, WORDS)
    assert len(list(tmp_path.glob("*.safetensors"))) == 4
    assert not torch.equal(first.pool["latents"], third.pool["latents"])
    assert not torch.equal(first.decoded, third.decoded)
    assert first.key != third.key


@pytest.mark.filterwarnings("ignore:.*Checkpoint directory .* exists and is not empty")
def test_only_a_checkpoint_of_the_same_settings_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    monkeypatch.setattr(VAEStage, "on_train_batch_start", lambda _, batch, i: taken.append(i))
    for settings, steps in (({}, 2), ({}, 0), ({"vae": {"batch": 1}}, 2), ({"seed": 1}, 2)):
        taken.clear()
        config = small(tmp_path, **settings)
        fit(VAEStage(config, ART, WORDS), config.vae.steps, config)
        assert len(taken) == steps, settings
