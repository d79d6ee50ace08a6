"""Make text-to-image diffusion models forget a concept."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def load_unlearned(pipe: DiffusionPipeline, path: str | os.PathLike[str]) -> DiffusionPipeline:
    """Patch a diffusers pipeline in place with unlearned weights, and return it.

    A method that acts at inference is installed: the pipeline samples as it wants.

    Args:
        pipe: the base model's pipeline.
        path: an `unlearned.safetensors`.

    Raises:
        ValueError: the file is none, or does not fit the pipeline; nothing is changed.
    """
    from unlearn.weights import delta  # here, as torch would slow `unlearn --help`

    return delta.load_unlearned(pipe, path)
