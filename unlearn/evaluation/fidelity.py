"""Measure how far images moved from the base model's images of the same prompt and noise."""

from __future__ import annotations

import torch
from torch import Tensor

SAME_PICTURE = 0.1  # an image that moved less is the same picture


def root_mean_square_error(base: Tensor, after: Tensor) -> Tensor:
    """Return the root mean square error of each image, of values from 0 to 1, (N,).

    Args:
        base: the base model's images, uint8 (N, 3, H, W).
        after: the unlearned model's images of the same prompts and noise, of the same shape.
    """
    pairs = zip(base, after, strict=True)  # one by one, since floats of all take much memory
    return torch.stack([(a.float() - b.float()).square().mean().sqrt() / 255 for b, a in pairs])
