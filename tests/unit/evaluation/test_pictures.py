"""Where labels and images stand in the picture of `unlearn sample`."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from unlearn.evaluation.pictures import GAP, LINE, labelled_rows


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
