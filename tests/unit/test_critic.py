"""The measure of a discriminator: straight to the anchor is 1, and each bin has its share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from experiments.critic import directions, table, train_critic
from tests.unit.test_doco import make_doco

LOW = torch.full((6,), 10)  # there x0 is nearly z_t - σ ε


class Pointer(nn.Module):
    """Its logit is the squared distance to a point, so its gradient goes straight there."""

    def __init__(self, point: Tensor) -> None:
        super().__init__()
        self.point = point

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.point).square().flatten(1).sum(1)[:, None, None, None] * 1e-3


@pytest.mark.parametrize("paired", [False, True])
def test_a_discriminator_that_points_to_the_anchor_has_cosine_one(
    random_model: Path, paired: bool
) -> None:
    doco = make_doco(random_model, paired=paired)
    teacher, student, z_t = torch.randn(3, 6, 4, 16, 16)
    real, fake = doco.views(teacher, student, z_t, LOW)
    doco.discriminator = Pointer(real)
    cosine, norm = directions(doco, (teacher, student, z_t, LOW))
    torch.testing.assert_close(cosine, torch.ones(6), rtol=0, atol=1e-4)
    assert (norm > 0).all()
    doco.discriminator = Pointer(2 * fake - real)  # beyond the student: it points away
    cosine, _ = directions(doco, (teacher, student, z_t, LOW))
    torch.testing.assert_close(cosine, -torch.ones(6), rtol=0, atol=1e-4)


def test_training_helps(random_model: Path) -> None:
    doco = make_doco(random_model, paired=True, gradient_penalty=0.001, discriminator_lr=1e-3)
    student, z_t = torch.randn(2, 32, 4, 16, 16)
    pool = (student - 1.0, student, z_t, torch.full((32,), 500))  # the anchor is darker
    before, _ = directions(doco, pool)
    train_critic(doco, pool, steps=60)
    after, _ = directions(doco, pool)
    assert after.mean() > before.mean() + 0.2


def test_the_table_has_a_share_for_each_bin() -> None:
    timesteps = torch.tensor([0, 300, 600, 800, 950])
    cosine, norm = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5]), torch.tensor([1.0, 1, 2, 2, 4])
    row = table({"D": (cosine, norm)}, timesteps).splitlines()[-1]
    assert row == "| D | 0.10 (10%) | 0.20 (10%) | 0.30 (20%) | 0.40 (20%) | 0.50 (40%) |"
