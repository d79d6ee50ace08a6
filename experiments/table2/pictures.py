"""The pictures of Table 2: every method's rates, and a contact sheet of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from experiments.table2.bootstrap import Estimate
from experiments.table2.claims import Kept

Columns = dict[str, Estimate]
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


def draw_contact_sheet(results: Path, plan: dict[str, Any], kept: Kept) -> None:
    """Methods by prompts, cut from the runs' own pictures: two prompts of each set a target."""
    from unlearn.concepts.prompts import SET_NAMES
    from unlearn.evaluation.pictures import tile_box

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
                        box = tile_box(picture.width, part, side, column)
                        tile = picture.crop(box).resize((size, size))
                        sheet.paste(tile, (margin + place * size, top))
            base_drawn.add(target)
    draw.text((6, size // 2 - 6), "base model", "black")
    sheet.save(results / "contact.webp", quality=80)
