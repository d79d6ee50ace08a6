"""The losses of domain correction. Label 0 is the base model's anchor, label 1 the trained."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def domain_correction_loss(fake_logits: Tensor) -> Tensor:
    """Return the unlearning loss BCE(D(fake), 0), a 0-dim tensor.

    It falls as the discriminator takes the trained model's target for the base model's anchor.

    Args:
        fake_logits: D's logits on the trained model's x̂0 under the target prompt, (B, 1, m, m).

    Source: DoCo (arXiv 2405.15304), domain correction.
    """
    return _bce(fake_logits, 0.0)


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Return the discriminator's loss BCE(D(real), 0) + BCE(D(fake), 1), a 0-dim tensor.

    Args:
        real_logits: D's logits on the base model's x̂0 under the anchor prompt, (B, 1, m, m).
        fake_logits: D's logits on the trained model's detached x̂0, (B, 1, m, m).

    Source: DoCo (arXiv 2405.15304), domain correction.
    """
    return _bce(real_logits, 0.0) + _bce(fake_logits, 1.0)


def relearn_loss(output: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared error of the model's output, a 0-dim tensor of at least float32.

    Args:
        output: The trained model's output under the anchor prompt, (B, C, h, w).
        target: The noise target, (B, C, h, w).

    Source: DoCo (arXiv 2405.15304), concept-preserving gradient.
    """
    return F.mse_loss(_widen(output), _widen(target))


def _bce(logits: Tensor, label: float) -> Tensor:
    """Return the binary cross-entropy of logits to one label, a 0-dim tensor."""
    logits = _widen(logits)
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label))


def _widen(values: Tensor) -> Tensor:
    """Return the values in float32, or in float64 where they were already."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
