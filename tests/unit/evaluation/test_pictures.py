"""Where labels and images stand in the pictures of `unlearn sample` and of the prompt sets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unlearn.concepts.prompts import SET_NAMES, EvaluationPrompt
from unlearn.evaluation.pictures import (
    GAP,
    HEAD,
    LINE,
    PICTURED,
    before_after,
    labelled_rows,
    tile_box,
)


@pytest.mark.parametrize(("side", "shown"), [(16, 256), (64, 256), (100, 300), (512, 512)])
def test_images_are_enlarged_whole_and_labelled(side: int, shown: int) -> None:
    base, unlearned = torch.randint(0, 255, (2, 2, 3, side, side), dtype=torch.uint8)
    picture = np.asarray(labelled_rows(["a panda", "a cat"], base, unlearned))
    assert picture.shape == (LINE + 2 * (LINE + shown + GAP), 2 * shown, 3)
    heads = [(0, 0), (0, shown), (LINE, 0), (2 * LINE + shown + GAP, 0)]
    for top, left in heads:  # the labels, in black on white
        label = picture[top : top + LINE, left : left + shown]
        assert label.min() < 64 < 250 < label.max()
    for row in range(2):
        top = 2 * LINE + row * (LINE + shown + GAP)
        for column, images in enumerate((base, unlearned)):
            tile = picture[top : top + shown, column * shown : (column + 1) * shown]
            factor = shown // side
            assert np.array_equal(tile[::factor, ::factor], images[row].permute(1, 2, 0).numpy())


def test_a_long_prompt_takes_more_lines() -> None:
    image = torch.zeros(1, 3, 256, 256, dtype=torch.uint8)
    short, long = (labelled_rows([text], image, image) for text in ("a cat", "a cat " * 20))
    assert long.size[0] == short.size[0]
    assert long.size[1] > short.size[1]


def test_each_pair_stands_under_its_prompt_and_seed(tmp_path: Path) -> None:
    long = "a picture of a panda that sits on a very long bench " * 4
    probes = [EvaluationPrompt(name, text, "panda") for name in SET_NAMES for text in ("x", long)]
    images = torch.randint(0, 255, (2, len(probes), 3, 64, 64), dtype=torch.uint8)
    path = tmp_path / "before_after.png"
    before_after(probes, range(len(probes)), *images, path)
    picture = Image.open(path)
    pixels = np.asarray(picture)
    for number, name in enumerate(SET_NAMES):
        for column in range(2):
            for side in (0, 1):
                left, top, right, bottom = tile_box(picture.width, name, side, column)
                tile, image = pixels[top:bottom, left:right], images[side, 2 * number + column]
                assert np.array_equal(tile[::2, ::2], image.permute(1, 2, 0).numpy())
        left, top, right, _ = tile_box(picture.width, name, 0, 0)
        short, long_one = (pixels[top - HEAD : top, x : x + 128] for x in (left, right))
        assert 0 < (short < 128).sum() < (long_one < 128).sum()
        assert (pixels[top - HEAD : top, left + 2 * 128 :] == 255).all()  # no third prompt
    assert picture.height == len(SET_NAMES) * (HEAD + 2 * 128 + GAP)
    assert picture.width == tile_box(picture.width, "related", 0, PICTURED - 1)[2]
