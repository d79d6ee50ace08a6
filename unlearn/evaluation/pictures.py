"""Draw the picture of the four prompt sets before and after unlearning."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw
from torch import Tensor

from unlearn.concepts.prompts import SET_NAMES, EvaluationPrompt
from unlearn.utils.atomic import atomic_path

PICTURED = 8  # prompts of each set in the picture
# in pixels: the least and the most of a tile's side, the width of the rows' labels, the gap between
# sets, the height of the columns' labels and of each of their lines
TILE, MARGIN, GAP = (128, 256), 150, 12
HEAD, HEAD_LINE = 76, 15
LEAST_SAMPLE, LINE = 256, 24  # of a sample's side, and the height of a line of its labels


def pictured_rows(items: list[Any]) -> list[Any]:
    """Return up to `PICTURED` of the items, evenly spaced: every n-th, n being len // `PICTURED`.

    A report finds the prompts of a finished run's picture again with this function, so the choice
    must not change.
    """
    return items[:: max(1, len(items) // PICTURED)][:PICTURED]


def tile_box(width: int, part: str, side: int, column: int) -> tuple[int, int, int, int]:
    """Return the box of a tile in the picture of `before_after`: left, top, right, bottom.

    Args:
        width: of the picture.
        part: the tile's prompt set.
        side: 0: base, 1: unlearned.
        column: the tile's column.
    """
    tile = (width - MARGIN) // PICTURED
    top = SET_NAMES.index(part) * (HEAD + 2 * tile + GAP) + HEAD + side * tile
    left = MARGIN + column * tile
    return left, top, left + tile, top + tile


def before_after(
    probes: Sequence[EvaluationPrompt],
    seeds: Sequence[int],
    base: Tensor,
    after: Tensor,
    path: Path,
) -> None:
    """Write a picture of each set: the base model's row of images above the unlearned model's row.

    A row has up to `PICTURED` images. The prompt and the seed stand above each pair.

    Args:
        probes: the prompt of each image.
        seeds: the seed of each image.
        base: the base model's images, uint8 (N, 3, H, W).
        after: the unlearned model's images of the same shape.
        path: the PNG file.
    """
    tile = min(max(TILE[0], base.shape[-1]), TILE[1])
    width = MARGIN + PICTURED * tile
    picture = Image.new("RGB", (width, len(SET_NAMES) * (HEAD + 2 * tile + GAP)), "white")
    draw = ImageDraw.Draw(picture)
    for name in SET_NAMES:
        chosen = pictured_rows([i for i, p in enumerate(probes) if p.set == name])
        for column, i in enumerate(chosen):
            lines = textwrap.wrap(probes[i].prompt, tile // 7, max_lines=4, placeholder=" …")
            left, top, *_ = tile_box(width, name, 0, column)
            head = "\n".join([*lines, f"seed {seeds[i]}"])
            top -= HEAD_LINE * (len(lines) + 1)
            draw.multiline_text((left + 2, top), head, "black", font_size=12, spacing=3)
        for side, images in enumerate((base, after)):
            label = f"{name.replace('_', ' ')}\n{('base', 'unlearned')[side]}"
            top = tile_box(width, name, side, 0)[1]
            draw.multiline_text((8, top + tile // 2 - 16), label, "black", font_size=16)
            for column, i in enumerate(chosen):
                box = tile_box(width, name, side, column)
                picture.paste(enlarge(images[i], tile, tile), box)
    with atomic_path(path) as partial:
        picture.save(partial, format="PNG")


def enlarge(image: Tensor, width: int, height: int) -> Image.Image:
    """Return an image, uint8 (3, H, W), in another size: enlarged without smoothing its pixels."""
    small = width > image.shape[-1]
    way = Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS
    return Image.fromarray(image.permute(1, 2, 0).numpy()).resize((width, height), way)


def labelled_rows(prompts: Sequence[str], base: Tensor, unlearned: Tensor) -> Image.Image:
    """Return a row a prompt: prompt and seed above the base model's image and the unlearned one's.

    Small images are enlarged by a whole number to `LEAST_SAMPLE` pixels or more, without smoothing.

    Args:
        prompts: the prompt of each row; its seed is the row's number.
        base: the base model's images, uint8 (N, 3, H, W).
        unlearned: the unlearned model's images of the same shape.
    """
    factor = -(-LEAST_SAMPLE // min(base.shape[-2:]))
    height, width = (side * factor for side in base.shape[-2:])
    titles = [
        textwrap.wrap(f"{prompt} (seed {seed})", width=2 * width // 10)
        for seed, prompt in enumerate(prompts)
    ]
    total = LINE + sum(len(title) * LINE + height + GAP for title in titles)
    picture = Image.new("RGB", (2 * width, total), "white")
    draw = ImageDraw.Draw(picture)
    for column, label in enumerate(("base", "unlearned")):
        draw.text((column * width + 8, 4), label, "black", font_size=16)
    top = LINE
    for title, *sides in zip(titles, base, unlearned, strict=True):
        draw.multiline_text((8, top + 4), "\n".join(title), "black", font_size=16)
        top += len(title) * LINE
        for column, side in enumerate(sides):
            picture.paste(enlarge(side, width, height), (column * width, top))
        top += height + GAP
    return picture
