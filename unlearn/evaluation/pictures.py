"""The picture of the four prompt sets, before and after."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw
from torch import Tensor

from unlearn.files import whole
from unlearn.prompts import SETS, Probe

PICTURED = 8  # prompts of each set in the picture
TILE, MARGIN, GAP = 128, 150, 12  # pixels of the picture


def pictured(items: list[Any]) -> list[Any]:
    """Up to `PICTURED` of the items, evenly spaced."""
    return items[:: max(1, len(items) // PICTURED)][:PICTURED]


def tile_corner(part: str, side: int, column: int) -> tuple[int, int]:
    """Where a tile of `before_after` lies: of a set, side (0: base, 1: unlearned) and column."""
    top = SETS.index(part) * (2 * TILE + GAP) + side * TILE
    return MARGIN + column * TILE, top


def before_after(probes: list[Probe], base: Tensor, after: Tensor, path: Path) -> None:
    """A picture: up to eight prompts a set, the base model's row above the unlearned model's."""
    size = (MARGIN + PICTURED * TILE, len(SETS) * (2 * TILE + GAP))
    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    for name in SETS:
        chosen = pictured([i for i, p in enumerate(probes) if p.set == name])
        for side, images in enumerate((base, after)):
            label = f"{name.replace('_', ' ')}\n{('base', 'unlearned')[side]}"
            top = tile_corner(name, side, 0)[1]
            draw.multiline_text((8, top + TILE // 2 - 16), label, "black", font_size=16)
            for column, i in enumerate(chosen):
                image = Image.fromarray(images[i].permute(1, 2, 0).numpy()).resize((TILE, TILE))
                picture.paste(image, tile_corner(name, side, column))
    with whole(path) as partial:
        picture.save(partial, format="PNG")
