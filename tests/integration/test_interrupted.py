"""Runs that are killed, told to stop, or meet a fault: what they end with, and what they say."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import resource
import select
import signal
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.console import SCRIPT, unlearn

LR, STEPS = 1e-3, 16


@pytest.fixture(scope="module")
def smoke(random_model: Path, random_judge: Path) -> list[str]:
    return [
        "concept=panda", f"model.pretrained={random_model}", f"evaluation.judge={random_judge}",
        f"steps={STEPS}", "method.warmup_steps=2", "batch_size=3", "data.images=4",
        "data.relearn_images=4", "data.num_inference_steps=2", "evaluation.images_per_prompt=1",
        "evaluation.num_inference_steps=2", f"method.lr={LR}", "trainer.accelerator=cpu",
        "trainer.log_every_n_steps=1", "checkpoint_every=1", "keep_every=4",
    ]  # fmt: skip


def contents(run: Path) -> dict[str, bytes]:
    """Every file of a run but its facts of the call and its checkpoint, which counts restarts."""
    files = (p for p in run.rglob("*") if p.is_file() and p.suffix != ".ckpt")
    files = (p for p in files if p.name not in ("budget.json", "environment.json"))
    return {str(p.relative_to(run)): p.read_bytes() for p in files}


def started(arguments: list[str], cwd: Path, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [SCRIPT, "train", *arguments], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
    )  # fmt: skip


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
def test_every_method_ends_with_the_same_bytes_however_often_it_is_killed(
    smoke: list[str], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "tests.helpers.kills", str(tmp_path), *smoke]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    kills = json.loads((tmp_path / "kills.json").read_text())
    assert sum(sum(phases.values()) for phases in kills.values()) >= 20, kills
    for name, phases in kills.items():
        assert phases["training"] > 0, kills
        one, other = (tmp_path / side / name / name for side in ("undisturbed", "disturbed"))
        assert {"unlearned.safetensors", "metrics.csv", "steps/000016/config.yaml"} <= {
            *contents(one)
        }
        assert contents(one) == contents(other), f"{name}, {done.stdout}"
        states = [
            torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["optimizer_states"]
            for run in (one, other)
        ]
        torch.testing.assert_close(*states, rtol=0, atol=0)


@pytest.fixture(scope="module")
def accumulated(smoke: list[str]) -> list[str]:
    """No checkpoint on the way; the steps are accumulated, and taught in groups."""
    more = ["steps=100", "method.accumulate_grad_batches=2", "batch_size=1", "keep_every=0"]
    return [*smoke, *more, "checkpoint_every=1000", "run_dir=run"]


@pytest.fixture(scope="module")
def undisturbed(accumulated: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of `accumulated` that no signal meets."""
    folder = tmp_path_factory.mktemp("undisturbed")
    done = unlearn("train", *accumulated, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "run"


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_writes_a_checkpoint_that_the_same_command_goes_on_from(
    accumulated: list[str], undisturbed: Path, tmp_path: Path, signum: signal.Signals
) -> None:
    with started(accumulated, tmp_path) as process:
        wait_for(tmp_path / "run" / "metrics.csv", process)
        process.send_signal(signum)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + signum
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    step = checkpoint["step"]
    assert 0 < step < 100
    assert errors.splitlines()[-1] == (
        f"unlearn: stopped by {signum.name}; the same command goes on after step {step} "
        "(run/checkpoints/last.ckpt)"
    )
    assert "Traceback" not in errors
    again = unlearn("train", *accumulated, cwd=tmp_path)
    assert again.returncode == 0, again.stderr[-3000:]
    assert f"run: goes on after step {step} of 100" in again.stdout
    assert contents(tmp_path / "run") == contents(undisturbed)


@pytest.mark.slow
def test_a_lost_terminal_leaves_a_checkpoint(smoke: list[str], tmp_path: Path) -> None:
    overrides = [*smoke, "steps=1000", "keep_every=0", "checkpoint_every=1000", "run_dir=run"]
    terminal, inside = pty.openpty()

    def own_terminal() -> None:
        os.setsid()
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored
        fcntl.ioctl(inside, termios.TIOCSCTTY, 0)

    with subprocess.Popen(
        [SCRIPT, "train", *overrides], cwd=tmp_path, stdin=inside, stdout=inside, stderr=inside,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, preexec_fn=own_terminal,
    ) as process:  # fmt: skip
        os.close(inside)
        reading = threading.Thread(target=drain, args=(terminal, tmp_path / "run" / "metrics.csv"))
        reading.start()
        reading.join(timeout=120)
        os.close(terminal)
        assert process.wait(timeout=120) == 128 + signal.SIGHUP
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert 0 < checkpoint["step"] < 1000


def drain(terminal: int, until: Path) -> None:
    """Read what a terminal shows, until a file is there."""
    while not until.exists():
        select.select([terminal], [], [], 0.01)[0] and os.read(terminal, 4096)


@pytest.mark.slow
def test_the_folder_of_a_run_is_not_taken_for_another(smoke: list[str], tmp_path: Path) -> None:
    overrides = [*smoke, "run_dir=run"]
    assert unlearn("train", *overrides, cwd=tmp_path).returncode == 0
    (tmp_path / "run" / "note.txt").write_text("mine")
    before = contents(tmp_path / "run")
    again = unlearn("train", *overrides, "logger=tensorboard", cwd=tmp_path)
    assert again.stdout.startswith("run: finished before")
    other = unlearn("train", *overrides, "steps=5", "seed=1", cwd=tmp_path)
    assert other.returncode == 2
    assert "run_dir=run: holds a run with seed=0, not 1" in other.stderr
    assert contents(tmp_path / "run") == before
    path = tmp_path / "run" / "images.csv"
    path.write_bytes(before["images.csv"][:-40])
    damaged = unlearn("train", *overrides, cwd=tmp_path)
    assert "run/images.csv: missing or damaged; the run is evaluated again" in damaged.stdout
    assert contents(tmp_path / "run") == before
    fresh = unlearn("train", *overrides, "seed=1", "keep_every=0", "resume=false", cwd=tmp_path)
    assert fresh.returncode == 0, fresh.stderr[-3000:]
    after = contents(tmp_path / "run")
    assert after["note.txt"] == b"mine"
    assert not any(name.startswith("steps/") for name in after)
    assert after["unlearned.safetensors"] != before["unlearned.safetensors"]


@pytest.mark.slow
def test_two_processes_share_one_cache(smoke: list[str], tmp_path: Path) -> None:
    for name in ("one", "two", "alone"):
        (tmp_path / name).mkdir()
    cache = {"UNLEARN_CACHE": str(tmp_path / "cache")}
    both = [started([*smoke, "run_dir=run"], tmp_path / n, **cache) for n in ("one", "two")]
    for process in both:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors[-3000:]
    alone = {"UNLEARN_CACHE": str(tmp_path / "other")}
    assert unlearn("train", *smoke, "run_dir=run", cwd=tmp_path / "alone", **alone).returncode == 0
    expected = contents(tmp_path / "alone" / "run")
    assert contents(tmp_path / "one" / "run") == contents(tmp_path / "two" / "run") == expected
    assert not list((tmp_path / "cache").rglob("*.partial"))


@pytest.mark.slow
def test_two_ranks_go_on_together(smoke: list[str], tmp_path: Path) -> None:
    """SIGTERM to rank 0 alone, as Kubernetes sends it; within 1e-6 of an undisturbed run."""
    overrides = [*smoke, "trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu"]
    overrides += ["trainer.precision=32-true", "steps=60", "checkpoint_every=1000", "run_dir=run"]
    with started(overrides, tmp_path) as process:
        wait_for(tmp_path / "run" / "metrics.csv", process)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 143, errors[-3000:]
    step = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["step"]
    assert f"the same command goes on after step {step}" in errors
    assert 0 < step < 60
    again = unlearn("train", *overrides, cwd=tmp_path)
    assert again.returncode == 0, again.stderr[-3000:]
    assert again.stdout.count("goes on after step") == 1
    (tmp_path / "whole").mkdir()
    assert unlearn("train", *overrides, cwd=tmp_path / "whole").returncode == 0
    paths = (tmp_path / part / "run" / "unlearned.safetensors" for part in ("", "whole"))
    one, other = map(load_file, paths)
    for name, weight in one.items():
        torch.testing.assert_close(weight, other[name], rtol=0, atol=1e-6)


UNBOUNDED = """
import unlearn.utils.options
unlearn.utils.options.check_number = lambda *value, **bounds: None  # else 1e30 would be refused
from unlearn.cli.main import main
main()
"""


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_its_inputs(
    smoke: list[str], tmp_path: Path
) -> None:
    overrides = [*smoke, "method=concept_ablation", "method.lr=1e30", "run_dir=run"]
    overrides = [o for o in overrides if o not in ("method.warmup_steps=2", f"method.lr={LR}")]
    done = subprocess.run(
        [sys.executable, "-c", UNBOUNDED, "train", *overrides], cwd=tmp_path, capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("unlearn:")]
    assert line.startswith("unlearn: in step 1 loss/unlearn is nan; the last checkpoint is of st")
    assert "Lower method.lr" in line
    code = line.partition('python -c "')[2].removesuffix('"')
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert "'loss/unlearn': nan" in shown.stdout
    kept = torch.load(tmp_path / "run" / "failed_step_rank0.pt", weights_only=True)
    assert kept["step"] == 1
    assert kept["batch"]["latents"].shape == (3, 2, 4, 16, 16)
    assert max(w.abs().max() for w in kept["weights"].values()) > 1e29
    assert not (tmp_path / "run" / "unlearned.safetensors").exists()


def limited() -> None:
    """No file over 100 kB: a checkpoint does not fit, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


@pytest.mark.slow
def test_a_full_disk_leaves_the_last_checkpoint_whole(smoke: list[str], tmp_path: Path) -> None:
    overrides = [*smoke, "method.discriminator_channels=64", "checkpoint_every=8", "run_dir=run"]
    done = subprocess.run(
        [SCRIPT, "train", *overrides], cwd=tmp_path, capture_output=True, text=True,
        preexec_fn=limited,
    )  # fmt: skip
    assert done.returncode == 2
    assert "unlearn: no space left on the disk ([Errno 27] File too large" in done.stderr
    assert "make room, then the same command goes on" in done.stderr
    assert not list((tmp_path / "run").rglob("*.partial"))
    again = unlearn("train", *overrides, cwd=tmp_path)
    assert again.returncode == 0, again.stderr[-3000:]


def test_an_output_folder_that_cannot_be_written_is_refused(
    smoke: list[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    refused = unlearn("train", *smoke, "run_dir=file/run", cwd=tmp_path)
    assert refused.returncode == 2
    assert "run_dir=file/run: cannot be written (Not a directory); choose" in refused.stderr
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere: a read-only folder was not tried")
    (tmp_path / "closed").mkdir(mode=0o555)
    refused = unlearn("train", *smoke, "run_dir=closed/run", cwd=tmp_path)
    assert "run_dir=closed/run: cannot be written (Permission denied)" in refused.stderr


def test_without_a_key_for_wandb_the_way_on_is_said(smoke: list[str], tmp_path: Path) -> None:
    closed = {"WANDB_API_KEY": "", "HOME": str(tmp_path), "WANDB_SILENT": "true"}
    refused = unlearn("train", *smoke, "logger=wandb", "run_dir=run", cwd=tmp_path, **closed)
    assert refused.returncode == 2
    assert "logger=wandb:" in refused.stderr
    assert "logger.wandb.mode=offline keeps the run here" in refused.stderr


LOSE_WANDB = """
import os, signal, sys, time
from pathlib import Path
from unlearn.cli.main import main
from unlearn.training.loggers import RunWandbLogger

plain = RunWandbLogger.log_metrics

def log_metrics(self, metrics, step=None):
    if step == 3:
        for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
            if "wandb-core" in Path(f"/proc/{pid}/cmdline").read_text():
                os.kill(int(pid), signal.SIGKILL)
        time.sleep(0.5)
    plain(self, metrics, step)

RunWandbLogger.log_metrics = log_metrics
main()
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds W&B in Linux's /proc")
def test_a_run_goes_on_without_wandb(smoke: list[str], tmp_path: Path) -> None:
    """Its process is killed on the way."""
    overrides = [*smoke, "logger=wandb", "logger.wandb.mode=offline", "log_images_every=0"]
    done = subprocess.run(
        [sys.executable, "-c", LOSE_WANDB, "train", *overrides, "run_dir=run"], cwd=tmp_path,
        capture_output=True, text=True, timeout=120, env={**os.environ, "WANDB_SILENT": "true"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("W&B is lost, the run goes on without it") == 1
    plain = unlearn("train", *smoke, "run_dir=plain", cwd=tmp_path)
    assert plain.returncode == 0
    for name in ("metrics.csv", "images.csv"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()


@pytest.mark.slow
def test_a_resumed_run_is_one_wandb_run(smoke: list[str], tmp_path: Path) -> None:
    overrides = [*smoke, "logger=wandb", "logger.wandb.mode=offline", "run_dir=run", "steps=60"]
    with started(overrides, tmp_path, WANDB_SILENT="true") as process:
        wait_for(tmp_path / "run" / "checkpoints" / "last.ckpt", process)
        process.kill()
    assert unlearn("train", *overrides, cwd=tmp_path, WANDB_SILENT="true").returncode == 0
    names = [path.name for path in (tmp_path / "run" / "wandb").glob("offline-run-*")]
    assert len(names) == 2
    assert len({name.rpartition("-")[2] for name in names}) == 1
