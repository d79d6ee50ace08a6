"""Files that are whole or absent, whenever the process that writes them is killed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Inside, a path beside `path` to write to, which then takes its place.

    Where writing fails, `path` stays as it was. Two processes can write one file at the same time.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")
