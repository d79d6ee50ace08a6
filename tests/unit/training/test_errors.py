"""Faults of the machine, each with a message that says the way on; and signals."""

from __future__ import annotations

import os
import pickle
import signal
from pathlib import Path

import pytest
import torch

from unlearn.training.signals import SignalHandler
from unlearn.utils.atomic import write_text
from unlearn.utils.errors import Interrupted, NotFiniteError, RunError
from unlearn.utils.run_errors import as_run_errors


def test_a_full_disk_is_explained() -> None:
    with (
        pytest.raises(RunError, match=r"no space left on the disk .*make room, then the same"),
        as_run_errors(Path("weights")),
    ):
        Path("/dev/full").write_text("more")


def test_memory_that_is_not_there_is_explained(tmp_path: Path) -> None:
    weights = tmp_path / "unlearned.safetensors"
    trains = (
        r"out of memory in training .* batch_size, .*method\.accumulate_grad_batches.*precision"
    )
    with pytest.raises(RunError, match=trains), as_run_errors(weights):
        torch.empty(2**55)
    weights.touch()
    draws = r"in the evaluation .*: the same command goes on with a lower sampling_batch_size$"
    with pytest.raises(RunError, match=draws), as_run_errors(weights):
        torch.empty(2**55)


@pytest.mark.parametrize("error", [ValueError("bad"), RuntimeError("other"), OSError(2, "gone")])
def test_what_is_not_the_machine_s_stays_as_it_is(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, as_run_errors(Path("weights")):
        raise error
    assert raised.value is error


def test_a_folder_closed_meanwhile_is_explained(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    tmp_path.chmod(0o555)
    with pytest.raises(RunError, match="not allowed to write"), as_run_errors(tmp_path / "weights"):
        write_text(tmp_path / "file", "text")


def test_signals_wait_for_the_end_of_a_step_and_only_there() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with SignalHandler() as stop:
        with pytest.raises(Interrupted) as ended:
            os.kill(os.getpid(), signal.SIGTERM)
        assert (ended.value.code, ended.value.name) == (143, "SIGTERM")
        stop.training = True
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signum == signal.SIGINT
        with pytest.raises(Interrupted) as ended:
            os.kill(os.getpid(), signal.SIGINT)
        assert ended.value.code == 130
    assert signal.getsignal(signal.SIGTERM) is before


def test_faults_reach_another_process() -> None:
    fault = NotFiniteError(3, {"loss/unlearn": float("nan")}, {"latents": torch.zeros(2)})
    other = pickle.loads(pickle.dumps(fault))
    assert (type(other), str(other), other.step) == (NotFiniteError, str(fault), 3)
    end = pickle.loads(pickle.dumps(Interrupted(signal.SIGTERM)))
    assert (end.code, end.name) == (143, "SIGTERM")
