"""The losses of domain correction. Label 0 is the base model's anchor, label 1 the trained."""

import torch
from torch import Tensor
from torch.nn import functional as F


def domain_correction_loss(
    fake_logits: Tensor, real_logits: Tensor | None = None, weights: Tensor | None = None
) -> Tensor:
    """Returns the unlearning loss BCE(D(fake), 0), a 0-dim tensor.

    It falls as the discriminator takes the trained model's target for the base model's anchor.

    Args:
        fake_logits: D's logits on the trained model's x̂0 under the target prompt, (B, 1, m, m).
        real_logits: D's logits on the base model's x̂0 of the same z_t, same shape; then the loss
            is of the pair, BCE(D(fake) - D(real), 0).
        weights: One factor a sample, (B,); by default 1.

    Sources: DoCo (arXiv 2405.15304), domain correction; for pairs, the relativistic loss of
    Jolicoeur-Martineau (arXiv 1807.00734).
    """
    logits = fake_logits if real_logits is None else fake_logits - real_logits
    if weights is None:
        return _bce(logits, 0.0)
    losses = F.softplus(_widen(logits)).flatten(1).mean(dim=1)
    return (weights * losses).mean()


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor, paired: bool = False) -> Tensor:
    """Returns the discriminator's loss BCE(D(real), 0) + BCE(D(fake), 1), a 0-dim tensor.

    Args:
        real_logits: D's logits on the base model's x̂0 under the anchor prompt, (B, 1, m, m).
        fake_logits: D's logits on the trained model's detached x̂0, (B, 1, m, m).
        paired: the loss of the pair, BCE(D(fake) - D(real), 1), instead.

    Sources: see `domain_correction_loss`.
    """
    if paired:
        return _bce(fake_logits - real_logits, 1.0)
    return _bce(real_logits, 0.0) + _bce(fake_logits, 1.0)


def gradient_penalty(logits: Tensor, inputs: Tensor) -> Tensor:
    """Returns the batch's mean of ‖∇ Σ D(x)‖², Σ over the map: R1 on real x, R2 on fake x.

    Args:
        logits: D's logits (B, 1, m, m).
        inputs: what they are of, (B, C, h, w), with gradient.

    Source: Mescheder et al. 2018 (arXiv 1801.04406), section 4.1.
    """
    (slope,) = torch.autograd.grad(logits.sum(), inputs, create_graph=True)
    return slope.square().flatten(1).sum(dim=1).mean()


def relearn_loss(output: Tensor, target: Tensor) -> Tensor:
    """Returns the mean squared error of the model's output, a 0-dim tensor of at least float32.

    Args:
        output: The trained model's output under the anchor prompt, (B, C, h, w).
        target: The noise target, (B, C, h, w).

    Source: DoCo (arXiv 2405.15304), concept-preserving gradient.
    """
    return F.mse_loss(_widen(output), _widen(target))


def _bce(logits: Tensor, label: float) -> Tensor:
    logits = _widen(logits)
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label))


def _widen(values: Tensor) -> Tensor:
    """Returns the values in float32, or in float64 where they were already."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
