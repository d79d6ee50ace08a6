"""Gradients by name: one vector and back, sums and means."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from tests.helpers.methods import make_doco
from unlearn.methods.gradients import Gradients

SHAPES = [(2, 3), (), (4,)]


def tensors(count: int) -> list[Tensor]:
    return [torch.randn(shape) for shape in SHAPES[:count]]


def assert_equal(found: Gradients, expected: Gradients) -> None:
    for part, other in zip(found, expected, strict=True):
        assert [tuple(a.shape) for a in part] == [tuple(b.shape) for b in other]
        assert all(torch.equal(a, b) for a, b in zip(part, other, strict=True))


@pytest.mark.parametrize("counts", [(3, 3, 2), (2, 2, 0), (1, 0, 0), (0, 0, 3)])
def test_one_vector_holds_them_in_order_and_gives_them_back(counts: tuple[int, int, int]) -> None:
    gradients = Gradients(*map(tensors, counts))
    flat = gradients.flatten()
    u, r, d = gradients
    assert torch.equal(flat, torch.cat([g.flatten() for g in (*u, *r, *d)]))
    assert_equal(gradients.restore(flat), gradients)
    assert_equal(gradients.restore(2 * flat), gradients.add(gradients))
    assert_equal(gradients.add(gradients).divide(2), gradients)


def test_a_vector_of_another_length_is_refused() -> None:
    gradients = Gradients(tensors(2))
    with pytest.raises(RuntimeError):
        gradients.restore(torch.zeros(8))


def test_the_mean_over_ranks_is_one_collective_and_each_keeps_its_name(random_model: Path) -> None:
    doco, calls = make_doco(random_model), []

    def reduce(flat: Tensor, reduce_op: str) -> Tensor:
        calls.append((len(flat), reduce_op))
        return flat / 2  # as if the other rank's were zero

    strategy = SimpleNamespace(reduce=reduce)
    doco._trainer = SimpleNamespace(world_size=2, strategy=strategy)
    gradients = Gradients(tensors(3), tensors(3), tensors(1))
    mean = doco.mean_gradients(gradients, last=True)
    assert mean is not None
    assert_equal(mean, gradients.divide(2))
    assert calls == [(11 + 11 + 6, "mean")]
