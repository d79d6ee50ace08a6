"""The embedded model's data: compositions, captions and tokenizer, without fetching any art."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from experiments.emoji.art import rasterise, svg
from experiments.emoji.build import EpochSteps
from experiments.emoji.compose import caption, compose
from experiments.emoji.tokenizer import TOKENS, train_tokenizer
from unlearn.vocabulary import vocabulary

WORDS = vocabulary()


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
