"""Find out how far an earlier call of a run came, and prepare the run directory."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import OmegaConf

from unlearn.config.run_config import RunConfig
from unlearn.config.run_files import read_result
from unlearn.config.saved import flatten_keys, read_saved_config
from unlearn.training.checkpoints import checkpoint_step
from unlearn.utils.atomic import write_text
from unlearn.utils.hashing import file_sha256

# Keys that may differ when a run resumes, since they do not change its weights. What a recipe set
# is compared under `steps` and `method`.
IGNORED_KEYS = (
    "resume", "run_dir", "method.recipe", "model.recipes", "checkpoint_every",
    "gradient_checkpointing", "logger", "callbacks", "log_images_every", "log_group"
)  # fmt: skip
ERROR_FILE = "error.txt"  # why the run's last job in a sweep failed
OUTPUTS = (  # what a run and later commands write; config.yaml last, since it marks a run directory
    "checkpoints", "evaluation", "export", "images", "steps", "tensorboard", "before_after.png",
    ERROR_FILE, "budget.json", "delta.bin", "environment.json", "failed_step_rank*.pt",
    "images.csv",
    "kohya.safetensors", "lora.safetensors", "metrics.csv", "result.json", "sample.png",
    "unlearned.safetensors", "*.partial", "config.yaml",
)  # fmt: skip


class Progress(NamedTuple):
    """The progress that an earlier call of a run made.

    Attributes:
        begun: whether there was an earlier call.
        checkpoint: the file that training resumes from; None: training begins at the first step.
        step: the number of steps made until then.
        trained: whether the weights are there.
        finished: whether the evaluation is there, too.
    """

    begun: bool = False
    checkpoint: Path | None = None
    step: int = 0
    trained: bool = False
    finished: bool = False


def read_progress(config: RunConfig) -> Progress:
    """Return how far the run in a run directory came; write nothing.

    Raises:
        ValueError: the directory holds another run, or a damaged checkpoint.
    """
    run = config.folder
    try:
        if not (run / "config.yaml").exists():
            return Progress()
    except OSError as error:  # such as a name that is too long
        raise ValueError(f"run_dir={run}: {error.strerror}; choose another run_dir") from error
    earlier = read_saved_config(run)
    if not config.resume:
        return Progress()
    now, trained = yaml.safe_load(config_text(config)), config.weights.exists()
    if trained:  # sampling_batch_size can no longer change the weights
        earlier["sampling_batch_size"] = now["sampling_batch_size"]
    if different := first_difference(earlier, now):
        key, old, new = different
        raise ValueError(
            f"run_dir={run}: holds a run with {key}={old}, not {new}; choose another run_dir, or "
            "resume=false to begin anew, which deletes what that run wrote"
        )
    if trained:
        return Progress(begun=True, step=config.steps, trained=True, finished=is_evaluated(run))
    checkpoint = run / "checkpoints" / "last.ckpt"
    if not checkpoint.exists():
        return Progress(begun=True)
    return Progress(begun=True, checkpoint=checkpoint, step=checkpoint_step(checkpoint))


def config_text(config: RunConfig) -> str:
    """Return the text of a run's config.yaml."""
    return OmegaConf.to_yaml(OmegaConf.create(dict(config.saved)))


def result_settings(config: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a config that decide a run's result, by dotted keys."""
    return {
        key: value
        for key, value in flatten_keys(config)
        if not any(f"{key}.".startswith(f"{free}.") for free in IGNORED_KEYS)
    }


def first_difference(earlier: dict[str, Any], now: dict[str, Any]) -> tuple[str, str, str] | None:
    """Return the first key that decides a run's result and differs, with both values as text."""
    old, new = result_settings(earlier), result_settings(now)
    keys = sorted([*new, *old], key=lambda key: "." not in key)  # `method.*` decides `steps`
    for key in keys:
        texts = [repr(values[key]) if key in values else "nothing" for values in (old, new)]
        if texts[0] != texts[1]:
            return key, texts[0], texts[1]
    return None


def is_evaluated(run: Path) -> bool:
    """Return whether the evaluation's files are there as they were written; print which are not."""
    path = run / "result.json"
    if not path.exists():
        return False
    try:
        hashes = read_result(path)["sha256"]
    except ValueError:
        hashes = {"result.json": ""}
    for name, expected in hashes.items():
        if not (run / name).exists() or file_sha256(run / name) != expected:
            print(f"{run / name}: missing or damaged; the run is evaluated again")
            return False
    return True


def lock_run_dir(run: Path) -> int:
    """Lock a run directory against other processes of this machine.

    Returns:
        A file descriptor; the lock ends when the descriptor is closed.

    Raises:
        ValueError: another process has the lock.
    """
    held = os.open(run, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(held)
        raise ValueError(f"run_dir={run}: another process is at work in it") from error
    except OSError:  # the file system has no locks
        pass
    return held


@rank_zero_only
def open_run_dir(config: RunConfig, progress: Progress) -> int:
    """Prepare and lock the run directory, and write config.yaml if the run begins anew.

    An earlier run that this one does not resume is deleted.

    Returns:
        Rank 0's file descriptor of `lock_run_dir`, to close when the run ends; None on other ranks.

    Raises:
        ValueError: the directory cannot be written, or another process works in it.
    """
    held, run = None, config.folder
    try:
        run.mkdir(parents=True, exist_ok=True)
        held = lock_run_dir(run)
        if not progress.begun:
            if (run / "config.yaml").exists():
                delete_outputs(run)
            write_text(run / "config.yaml", config_text(config))
        else:
            for left in run.rglob("*.partial"):  # left by a killed process
                left.unlink(missing_ok=True)  # another node may delete it first
        tempfile.TemporaryFile(dir=run).close()
        return held
    except OSError as error:
        if held is not None:
            os.close(held)
        raise ValueError(
            f"run_dir={run}: cannot be written ({error.strerror}); choose another run_dir"
        ) from error


def delete_outputs(run: Path) -> None:
    """Delete what a run and later commands wrote to a run directory, and nothing else."""
    for pattern in OUTPUTS:
        for path in run.glob(pattern):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
