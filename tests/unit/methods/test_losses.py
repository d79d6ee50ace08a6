import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from unlearn.methods.losses import discriminator_loss, domain_correction_loss, relearn_loss


def values(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def test_losses_are_the_hand_formulas() -> None:
    """BCE(x, 0) = -log(1 - sigmoid(x)) and BCE(x, 1) = -log sigmoid(x), averaged over the map."""
    real, fake = values(2, 1, 3, 3), values(2, 1, 3, 3, seed=1)
    as_zero = -(1 - real.sigmoid()).log().mean()
    torch.testing.assert_close(domain_correction_loss(real), as_zero)
    torch.testing.assert_close(
        discriminator_loss(real, fake), as_zero - fake.sigmoid().log().mean()
    )
    torch.testing.assert_close(relearn_loss(real, fake), ((real - fake) ** 2).mean())


def test_values_worked_by_hand() -> None:
    zero, three = torch.zeros(1, 1, 2, 2), torch.full((1, 1, 2, 2), math.log(3.0))
    # sigmoid(log 3) = 3/4.
    assert domain_correction_loss(three).item() == pytest.approx(math.log(4.0))
    assert discriminator_loss(zero, three).item() == pytest.approx(math.log(2.0) + math.log(4 / 3))
    assert discriminator_loss(three, zero).item() == pytest.approx(math.log(4.0) + math.log(2.0))
    assert relearn_loss(torch.tensor([1.0, 4.0]), torch.tensor([2.0, 1.0])).item() == 5.0


@pytest.mark.parametrize(
    "loss",
    [
        lambda x: domain_correction_loss(x),
        lambda x: discriminator_loss(x, values(2, 1, 2, 2, seed=1)),
        lambda x: discriminator_loss(values(2, 1, 2, 2, seed=1), x),
        lambda x: relearn_loss(x, values(2, 1, 2, 2, seed=1)),
    ],
    ids=["domain_correction", "discriminator_real", "discriminator_fake", "relearn"],
)
def test_gradients_match_finite_differences(loss: Callable[[Tensor], Tensor]) -> None:
    point = values(2, 1, 2, 2).requires_grad_()
    (gradient,) = torch.autograd.grad(loss(point), point)
    step = 1e-6
    for i in range(point.numel()):
        shift = torch.zeros(point.numel(), dtype=torch.float64)
        shift[i] = step
        shift = shift.reshape(point.shape)
        with torch.no_grad():
            slope = (loss(point + shift) - loss(point - shift)) / (2 * step)
        assert gradient.flatten()[i].item() == pytest.approx(slope.item(), abs=1e-8)


def test_the_two_players_pull_the_fake_apart() -> None:
    """Descent on the discriminator's loss raises the logits, on the unlearning loss lowers."""
    fake = values(2, 1, 2, 2).requires_grad_()
    (of_model,) = torch.autograd.grad(domain_correction_loss(fake), fake)
    (of_discriminator,) = torch.autograd.grad(discriminator_loss(fake.detach(), fake), fake)
    assert (of_model > 0).all()
    assert (of_discriminator < 0).all()


def test_half_precision_is_summed_in_float32() -> None:
    """1 + 1/128 squared needs more bits than bfloat16 has."""
    output, target = torch.full((2, 3), 1.0078125).bfloat16(), torch.zeros(2, 3).bfloat16()
    loss = relearn_loss(output, target)
    assert loss.dtype == torch.float32
    assert loss.item() == 1.0078125**2
    assert domain_correction_loss(output).dtype == torch.float32
    assert discriminator_loss(output, target).dtype == torch.float32


def test_extreme_logits_stay_finite() -> None:
    logits = torch.tensor([-1e4, 1e4])
    assert domain_correction_loss(logits).item() == 5e3
    assert discriminator_loss(logits, logits).item() == 1e4
