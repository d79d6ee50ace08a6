"""The one style of all figures: colours, and files that are equal when drawn again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from unlearn.utils.atomic import atomic_path

# Okabe and Ito (2008), which colour-blind readers tell apart; without yellow, faint on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
HIGHLIGHT, OTHERS = COLOURS[1], "#767676"
FAINT = "#C8C8C8"  # what only gives the context
NO_DATE: dict[str, dict[str, None]] = {  # by format; a date would change the bytes of each drawing
    "png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None},
}  # fmt: skip
EMBEDDED_FONTS: Any = {"svg.hashsalt": "unlearn", "pdf.fonttype": 42}


def save_figure(figure: Figure, path: Path) -> list[Path]:
    """Write a figure as PNG, SVG and PDF, and return the three files.

    Args:
        figure: what to write.
        path: of the PNG; the others lie beside it.
    """
    files = {kind: path.with_suffix(f".{kind}") for kind in NO_DATE}
    with rc_context(EMBEDDED_FONTS):
        for kind, file in files.items():
            with atomic_path(file) as partial:
                figure.savefig(partial, format=kind, dpi=150, metadata=NO_DATE[kind])
    return list(files.values())
