"""Weights from elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unlearn.export import load_unlearned


def load_weights(pipe: Any, path: str | Path, concept_targets: list[str] | None = None) -> Any:
    """The pipeline with the weights at `path`."""
    return load_unlearned(pipe, path)
