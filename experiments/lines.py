"""CSV files of results that finished runs add lines to, whole whenever a call is killed."""

from __future__ import annotations

import csv
from pathlib import Path

from unlearn.utils.atomic import atomic_path

Lines = list[dict[str, str]]


def read_lines(path: Path) -> Lines:
    """The lines of a file by column; none where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def add_lines(path: Path, lines: Lines) -> None:
    """Add lines, all at once, of the columns that the file has."""
    lines = [*read_lines(path), *lines]
    with atomic_path(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
