"""Concept-preserving gradient surgery: pure maps from gradients to gradients.

g_u is the unlearning gradient and g_r the relearning gradient. Both are lists of N tensors, one a
weight, in G groups. Nothing here reads a value on the host, so no call waits for a device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

GRANULARITIES = ("tensor", "layer", "network")
ROUNDING = 1e-5  # a g_r this much smaller than g_u is rounding, and has no direction


class SurgeryStats(NamedTuple):
    """Hold the statistics of one surgery, as 0-dim tensors.

    Attributes:
        cosine: The cosine of g_u and g_r over all tensors together; 0 where either is zero.
        conflicting: The share of groups where the two conflict.
        norm_removed: The norm of what was removed divided by the norm of g_u.
    """

    cosine: Tensor
    conflicting: Tensor
    norm_removed: Tensor


def project(
    g_u: Sequence[Tensor],
    g_r: Sequence[Tensor],
    *,
    strength: float = 1.0,
    granularity: str = "tensor",
    layers: Sequence[int] | None = None,
) -> tuple[list[Tensor], SurgeryStats]:
    """Return g_u without its component against g_r, and statistics.

    In each group where ⟨g_u, g_r⟩ < 0 the result is g_u - λ ⟨g_u, g_r⟩/‖g_r‖² g_r, elsewhere g_u.
    With λ = 1 the result has no negative inner product with g_r in any group, up to rounding. A
    group whose ‖g_r‖ is under 1e-5 ‖g_u‖ stays as it is: such a g_r is rounding, as at the first
    step of relearning from the teacher, where student and teacher are equal.

    Args:
        g_u: The N gradients to project.
        g_r: The N gradients they must not oppose, with the same shapes.
        strength: λ; 0 leaves g_u as it is.
        granularity: A group is one "tensor", one "layer" or the whole "network".
        layers: The layer of each tensor; needed by "layer", unused otherwise.

    Raises:
        ValueError: If ``granularity`` is not known, or "layer" comes without one layer a tensor.

    Source: Yu et al. 2020 (PCGrad), algorithm 1, applied to g_u alone.
    """
    member = _membership(len(g_u), granularity, layers).to(g_u[0].device)
    inner, u_sq, r_sq = _inner(g_u, g_r), _inner(g_u, g_u), _inner(g_r, g_r)
    group_inner, group_r_sq = (member * inner).sum(dim=1), (member * r_sq).sum(dim=1)
    floor = ROUNDING**2 * (member * u_sq).sum(dim=1)
    conflict = (group_inner < 0) & (group_r_sq > floor)
    coefficient = torch.where(conflict, strength * group_inner / group_r_sq, 0.0)
    coefficient = (member * coefficient[:, None]).sum(dim=0)
    stats = _stats(inner, u_sq, r_sq, coefficient, conflict)
    return _subtract(g_u, coefficient, g_r), stats


def project_reference(
    g_u: Sequence[Tensor], g_r: Sequence[Tensor], strength: float = 1.0
) -> tuple[list[Tensor], SurgeryStats]:
    """Return g_u after the public reference implementation's surgery, and statistics.

    In each tensor where ⟨g_u, g_r⟩ < 0 the result is g_u - λ cos(g_u, g_r) g_r/‖g_r‖. The factor
    ‖g_u‖ of a true projection is missing, so it over-corrects where ‖g_u‖ < 1.

    Args:
        g_u: The N gradients to correct.
        g_r: The N gradients to shield, with the same shapes.
        strength: λ.

    Source: the behaviour of the reference implementation of DoCo (arXiv 2405.15304).
    """
    inner, u_sq, r_sq = _inner(g_u, g_r), _inner(g_u, g_u), _inner(g_r, g_r)
    conflict = (inner < 0) & (u_sq > 0) & (r_sq > 0)
    coefficient = torch.where(conflict, strength * inner / (u_sq.sqrt() * r_sq), 0.0)
    stats = _stats(inner, u_sq, r_sq, coefficient, conflict)
    return _subtract(g_u, coefficient, g_r), stats


def clip_to_norm(grads: Sequence[Tensor], max_norm: float) -> tuple[list[Tensor], Tensor]:
    """Return the gradients with a global norm of at most ``max_norm``, and the norm before.

    The factor is min(1, max_norm/‖grads‖): gradients are never scaled up.

    Args:
        grads: The gradients, as one long vector.
        max_norm: The largest global norm allowed.
    """
    norm = torch.stack([torch.linalg.vector_norm(grad) for grad in grads]).norm()
    factor = (max_norm / norm).clamp(max=1.0)
    return [factor * grad for grad in grads], norm


def _membership(count: int, granularity: str, layers: Sequence[int] | None) -> Tensor:
    """Return which tensor is in which group, a bool matrix of shape (G, N)."""
    if granularity not in GRANULARITIES:
        raise ValueError(f"granularity={granularity!r} is not one of {', '.join(GRANULARITIES)}")
    if granularity == "tensor":
        return torch.eye(count, dtype=torch.bool)
    if granularity == "network":
        return torch.ones(1, count, dtype=torch.bool)
    if layers is None or len(layers) != count:
        raise ValueError(f"granularity='layer' needs {count} layers, one a tensor; layers={layers}")
    return torch.tensor([[layer == row for layer in layers] for row in sorted(set(layers))])


def _inner(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """Return the inner product of each pair of tensors, of shape (N,)."""
    return torch.stack([(x * y).sum() for x, y in zip(left, right, strict=True)])


def _subtract(g_u: Sequence[Tensor], coefficient: Tensor, g_r: Sequence[Tensor]) -> list[Tensor]:
    """Return u - c r for each tensor; ``coefficient`` has shape (N,)."""
    return [u - c * r for u, c, r in zip(g_u, coefficient.unbind(), g_r, strict=True)]


def _stats(
    inner: Tensor, u_sq: Tensor, r_sq: Tensor, coefficient: Tensor, conflict: Tensor
) -> SurgeryStats:
    """Return the statistics from each tensor's inner products and coefficient, of shape (N,)."""
    u_norm, r_norm = u_sq.sum().sqrt(), r_sq.sum().sqrt()
    return SurgeryStats(
        cosine=_ratio(inner.sum(), u_norm * r_norm),
        conflicting=conflict.to(inner.dtype).mean(),
        norm_removed=_ratio((coefficient.square() * r_sq).sum().sqrt(), u_norm),
    )


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Return the ratio, or 0 where the denominator is 0."""
    return torch.where(denominator > 0, numerator / denominator, 0.0)
