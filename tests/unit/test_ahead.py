"""The teacher ahead: the same outputs as batch by batch, in fewer passes, in the loader's order."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.unit.test_doco import make_batch, make_doco
from unlearn.methods.ahead import TeacherAhead, together


def test_batches_come_in_order_with_what_the_teacher_says_of_each() -> None:
    batches = [{"latents": torch.full((2, 1), float(i))} for i in range(5)]
    passes: list[tuple[int, int]] = []

    def teach(batch: dict[str, Tensor], last: int) -> Tensor:
        passes.append((len(batch["latents"]), last))
        return 10 * batch["latents"]

    ahead = TeacherAhead(batches, 2, teach, lambda batch: batch)
    assert len(ahead) == 5
    for number, batch in enumerate(ahead):
        assert torch.equal(batch["latents"], batches[number]["latents"])
        assert torch.equal(batch["taught"], 10 * batch["latents"])
    assert passes == [(4, 1), (4, 3), (2, 4)]
    assert "taught" not in batches[0]


def test_a_pass_is_for_32_samples_or_a_batch() -> None:
    assert [together(size) for size in (1, 8, 32, 100)] == [32, 4, 1, 1]


@pytest.mark.parametrize("target", ["noise", "teacher"])
def test_gradients_do_not_depend_on_when_the_teacher_ran(random_model: Path, target: str) -> None:
    doco = make_doco(random_model, relearn_target=target)
    for weight in doco.weights:
        weight.data += 0.05 * torch.randn_like(weight)
    batches = [make_batch(seed) for seed in range(3)]
    loader = TeacherAhead(batches, 2, lambda batch, _: doco.teach(batch), lambda batch: batch)
    for plain, ahead in zip(batches, loader, strict=True):
        assert ahead["taught"].shape[1] == (2 if target == "teacher" else 1)
        for now, before in zip(doco.gradients(plain)[:3], doco.gradients(ahead)[:3], strict=True):
            for a, b in zip(now, before, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


def test_the_relearn_half_is_not_taught_in_the_warm_up(random_model: Path) -> None:
    doco = make_doco(random_model, relearn_target="teacher", warm_up=2)
    assert [doco.relearns(step) for step in range(4)] == [False, False, True, True]
    assert doco.teach(make_batch(), relearns=False).shape[1] == 1
