"""The teacher ahead: the same outputs as batch by batch, in fewer passes, in the loader's order."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from tests.helpers.methods import make_batch, make_doco
from unlearn.data.resumable_loader import ResumableLoader
from unlearn.methods.teacher_ahead import TeacherAhead, batches_at_once


def test_batches_come_in_order_with_the_teacher_s_outputs_for_each() -> None:
    batches = [{"latents": torch.full((2, 1), float(i))} for i in range(5)]
    passes: list[tuple[int, int]] = []

    def teacher_outputs(batch: dict[str, Tensor], last: int) -> Tensor:
        passes.append((len(batch["latents"]), last))
        return 10 * batch["latents"]

    ahead = TeacherAhead(batches, 2, teacher_outputs, lambda batch: batch)
    assert len(ahead) == 5
    for number, batch in enumerate(ahead):
        assert torch.equal(batch["latents"], batches[number]["latents"])
        assert torch.equal(batch["teacher_outputs"], 10 * batch["latents"])
    assert passes == [(4, 1), (4, 3), (2, 4)]
    assert "teacher_outputs" not in batches[0]


class Numbers(Dataset[dict[str, Tensor]]):
    """Sample i is i."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        return {"latents": torch.tensor([float(number)])}


@pytest.mark.parametrize("done", range(11))
def test_batches_go_on_after_those_of_a_checkpoint(done: int) -> None:
    """From any batch, with the passes of the teacher that the whole run has."""

    def run(state: int) -> tuple[list[Tensor], list[Tensor]]:
        passes: list[Tensor] = []

        def teacher_outputs(batch: dict[str, Tensor], last: int) -> Tensor:
            passes.append(torch.cat([batch["latents"].flatten(), torch.tensor([last])]))
            return 10 * batch["latents"]

        source = ResumableLoader(Numbers(), 2, rank=1, world=2)
        loader = TeacherAhead(source, 4, teacher_outputs, lambda b: b)
        loader.load_state_dict({"done": state})
        batches = []
        for batch in loader:
            batches.append(torch.cat([batch["latents"], batch["teacher_outputs"]]))
            assert loader.state_dict() == {"done": state + len(batches)}
        assert len(loader) == 10
        return batches, passes

    batches, passes = run(0)
    assert torch.equal(torch.stack(batches)[:, :2, 0].flatten(), torch.arange(1.0, 40.0, 2))
    left, left_passes = run(done)
    torch.testing.assert_close(left, batches[done:], rtol=0, atol=0)
    torch.testing.assert_close(left_passes, passes[done // 4 :], rtol=0, atol=0)


def test_a_pass_is_for_32_samples_or_a_batch() -> None:
    assert [batches_at_once(size, 16) for size in (1, 8, 32, 100)] == [32, 4, 1, 1]
    assert [batches_at_once(1, side) for side in (8, 32, 64, 128)] == [128, 8, 2, 1]


@pytest.mark.parametrize("target", ["noise", "teacher"])
def test_gradients_do_not_depend_on_when_the_teacher_ran(random_model: Path, target: str) -> None:
    doco = make_doco(random_model, relearn_target=target)
    for weight in doco.weights:
        weight.data += 0.05 * torch.randn_like(weight)
    batches = [make_batch(seed) for seed in range(3)]
    loader = TeacherAhead(batches, 2, lambda batch, _: doco.teacher_outputs(batch), lambda b: b)
    for plain, ahead in zip(batches, loader, strict=True):
        assert ahead["teacher_outputs"].shape[1] == (2 if target == "teacher" else 1)
        found = (doco.gradients(batch)[0] for batch in (plain, ahead))
        for now, before in zip(*found, strict=True):
            for a, b in zip(now, before, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


def test_the_teacher_leaves_the_relearn_half_out_in_the_warm_up(random_model: Path) -> None:
    doco = make_doco(random_model, relearn_target="teacher", warmup_steps=2)
    assert [doco.relearns(step) for step in range(4)] == [False, False, True, True]
    assert doco.teacher_outputs(make_batch(), relearns=False).shape[1] == 1
