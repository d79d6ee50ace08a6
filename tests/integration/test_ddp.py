"""Several gloo processes: the weights of one process, one writer, and a rank that dies."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.console import SCRIPT, unlearn

LR, STEPS = 1e-3, 5


@pytest.fixture(scope="module")
def smoke(random_model: Path, random_judge: Path) -> list[str]:
    return [
        "concept=panda", f"model.pretrained={random_model}", f"evaluation.judge={random_judge}",
        "method.warmup_steps=2", f"method.lr={LR}", "data.images=6", "data.relearn_images=4",
        "data.num_inference_steps=2", "evaluation.images_per_prompt=1",
        "evaluation.num_inference_steps=2",
        "trainer.accelerator=cpu", "trainer.log_every_n_steps=1",
    ]  # fmt: skip


def ranks(devices: int) -> list[str]:
    """A global batch of 6, whatever the number of processes."""
    overrides = [f"batch_size={6 // devices}", f"steps={STEPS}", "trainer.precision=32-true"]
    return overrides if devices == 1 else ["trainer=ddp", f"trainer.devices={devices}", *overrides]


def train_on_two_nodes(overrides: list[str], cwd: Path) -> None:
    """One process a node, told of each other as a cluster does; both nodes are this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    nodes = [
        subprocess.Popen(
            [SCRIPT, "train", *overrides, "trainer.devices=1", "trainer.num_nodes=2"],
            cwd=cwd, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
                 "NODE_RANK": str(rank)},
        )
        for rank in range(2)
    ]  # fmt: skip
    errors = [node.communicate(timeout=300)[1] for node in nodes]
    for node, error in zip(nodes, errors, strict=True):
        assert node.returncode == 0, error[-3000:]


@pytest.mark.slow
def test_ranks_end_with_the_weights_of_one_process(smoke: list[str], tmp_path: Path) -> None:
    """Within 1 % of what three trained steps at lr 1e-3 can move a weight."""
    for devices in (1, 2, 3):
        overrides = [*smoke, *ranks(devices), f"run_dir={devices}"]
        done = unlearn("train", *overrides, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
    train_on_two_nodes([*smoke, *ranks(2), "run_dir=nodes"], tmp_path)
    expected = load_file(tmp_path / "1" / "unlearned.safetensors")
    for run in ("2", "3", "nodes"):
        written = sorted(p.name for p in (tmp_path / run).iterdir())
        assert written == sorted(p.name for p in (tmp_path / "1").iterdir())  # rank 0 alone writes
        for name, weight in load_file(tmp_path / run / "unlearned.safetensors").items():
            error = (weight - expected[name]).abs().max().item()
            assert error < 0.01 * (STEPS - 2) * LR, f"{run} {name}: {error}"


CHECK = """
import json, sys, hashlib, torch
from pathlib import Path
from unlearn.methods.base import UnlearningModule

def on_train_end(self):
    text = b"".join(p.detach().numpy().tobytes() for p in self.parameters())
    out = Path(sys.argv[-1]) / f"rank{self.trainer.global_rank}.json"
    out.write_text(json.dumps(hashlib.sha256(text).hexdigest()))

UnlearningModule.on_train_end = on_train_end
out = sys.argv.pop()
sys.argv.append(out)
import unlearn
unlearn.train(sys.argv[1:-1])
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("doco", ["method.warmup_steps=2"]),
        ("esd", ["method.num_inference_steps=2"]),
        ("spm", ["method.num_inference_steps=2"]),
        ("salun", ["method.mask_batches=2"]),
    ],
)
def test_all_ranks_hold_the_same_weights(
    smoke: list[str], tmp_path: Path, method: str, options: list[str]
) -> None:
    """Networks and discriminator, byte for byte, after the last step."""
    script = tmp_path / "train_and_hash.py"
    script.write_text(CHECK)
    shared = [o for o in smoke if o != "method.warmup_steps=2"]
    overrides = [*shared, f"method={method}", *options, *ranks(3), f"run_dir={tmp_path / 'run'}"]
    command = [sys.executable, str(script), *overrides, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    hashes = {json.loads((tmp_path / f"rank{r}.json").read_text()) for r in range(3)}
    assert len(hashes) == 1


def children(pid: int) -> list[int]:
    return [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the ranks in Linux's /proc")
def test_a_rank_that_dies_ends_the_run_with_a_usable_checkpoint(
    smoke: list[str], tmp_path: Path
) -> None:
    overrides = [*smoke, *ranks(2), "steps=100000", "run_dir=run", "checkpoint_every=20"]
    with subprocess.Popen(
        [SCRIPT, "train", *overrides], cwd=tmp_path, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as run:  # fmt: skip
        metrics = tmp_path / "run" / "metrics.csv"
        deadline = time.monotonic() + 120
        while not metrics.exists() or metrics.read_text().count("\n") < 200:
            assert time.monotonic() < deadline, "training never started"
            assert run.poll() is None, run.stderr.read()[-3000:]
            time.sleep(0.2)
        (rank,) = children(run.pid)
        os.kill(rank, signal.SIGKILL)
        _, errors = run.communicate(timeout=120)
    assert run.returncode not in (0, None)
    assert "unlearn: a process of this run died or could not be reached" in errors
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert all(tensor.isfinite().all() for tensor in checkpoint["state_dict"].values())
    assert any(name.startswith("discriminator.") for name in checkpoint["state_dict"])
    assert not (tmp_path / "run" / "unlearned.safetensors").exists()
