"""The pictures of Table 2: every method's rates, and a contact sheet of images."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from experiments.table2.bootstrap import Estimate
from experiments.table2.claims import Kept
from unlearn.concepts.prompts import SET_NAMES
from unlearn.utils.atomic import atomic_path

Columns = dict[str, Estimate]
# in pixels: a kept picture's tile, the height of a set, and the width of the margin
KEPT, KEPT_SET, KEPT_MARGIN = 128, 268, 150
Rows = list[tuple[str, int, Columns]]  # row, its number of runs, its columns
PANELS = (
    ("unseen target", "unseen-target rate (left is better)"),
    ("retention", "retention (right is better)"),
)


def draw_tradeoff(results: Path, plan: dict[str, Any], rows: Rows) -> None:
    """Unseen-target rate beside retention, a line a method, with 95 % intervals.

    Ablations are left out, as their means are over fewer targets.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    from unlearn.reports.plot_style import FAINT, HIGHLIGHT, OTHERS, save_figure

    shown = [(row, own) for row, _, own in rows if not plan["rows"][row].get("ablation")]
    labels = [plan["rows"][row]["label"] for row, _ in shown]
    figure = Figure(figsize=(8, 1.2 + 0.27 * len(shown)), layout="constrained")
    panels = figure.subplots(1, len(PANELS), sharey=True)
    for axes, (column, name) in zip(panels, PANELS, strict=True):
        for line, (label, (_, own)) in enumerate(zip(labels, shown, strict=True)):
            e = own[column]
            ours = label.startswith("DoCo")
            axes.errorbar(
                e.value, line, xerr=[[max(0, e.value - e.low)], [max(0, e.high - e.value)]],
                fmt="D" if ours else "o", markersize=5, elinewidth=1.2,
                color=HIGHLIGHT if ours else OTHERS,
            )  # fmt: skip
        axes.set(xlabel=name)
        axes.xaxis.set_major_formatter(PercentFormatter(1))
        axes.grid(axis="x", color=FAINT, linewidth=0.6)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
    panels[0].set_yticks(range(len(labels)), labels)
    panels[0].invert_yaxis()
    save_figure(figure, results / "tradeoff.png")


def kept_box(part: str, side: int, column: int) -> tuple[int, int, int, int]:
    """Return the box of a tile in a kept picture: left, top, right, bottom.

    The arguments are those of `unlearn.evaluation.pictures.tile_box`.
    """
    left, top = KEPT_MARGIN + column * KEPT, SET_NAMES.index(part) * KEPT_SET + side * KEPT
    return left, top, left + KEPT, top + KEPT


def keep_picture(run: Path, path: Path) -> None:
    """Keep a run's before_after.png, smaller and without its labels.

    Args:
        run: the run directory.
        path: the WebP file to write.
    """
    from unlearn.evaluation.pictures import PICTURED, tile_box

    size = (KEPT_MARGIN + PICTURED * KEPT, len(SET_NAMES) * KEPT_SET)
    kept = Image.new("RGB", size, "white")
    with Image.open(run / "before_after.png") as picture:
        for part, side, column in product(SET_NAMES, (0, 1), range(PICTURED)):
            tile = picture.crop(tile_box(picture.width, part, side, column))
            kept.paste(tile.resize((KEPT, KEPT)), kept_box(part, side, column))
    with atomic_path(path) as partial:
        kept.save(partial, format="WEBP", quality=85)


def draw_contact_sheet(results: Path, plan: dict[str, Any], kept: Kept) -> None:
    """Methods by prompts, cut from the runs' own pictures: two prompts of each set a target."""
    size, margin = 64, 190
    targets, shown = plan["ablation_targets"], [(s, column) for s in SET_NAMES for column in (0, 4)]
    width = margin + len(targets) * len(shown) * size
    sheet = Image.new("RGB", (width, (len(kept) + 1) * size), "white")
    draw = ImageDraw.Draw(sheet)
    base_drawn: set[str] = set()
    for line, row in enumerate(kept, start=1):
        draw.text((6, line * size + size // 2 - 6), plan["rows"][row]["label"], "black")
        for number, target in enumerate(targets):
            path = results / "pictures" / f"{row}-{target}-0.webp"
            if not path.exists():
                continue
            sides = [(1, line * size)] if target in base_drawn else [(0, 0), (1, line * size)]
            with Image.open(path) as picture:
                for place, (part, column) in enumerate(shown, start=number * len(shown)):
                    for side, top in sides:
                        tile = picture.crop(kept_box(part, side, column)).resize((size, size))
                        sheet.paste(tile, (margin + place * size, top))
            base_drawn.add(target)
    draw.text((6, size // 2 - 6), "base model", "black")
    sheet.save(results / "contact.webp", quality=80)
