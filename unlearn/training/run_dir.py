"""How far an earlier call of a run came, and making its directory ready."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import OmegaConf

from unlearn.config.run_config import RunConfig
from unlearn.config.saved import flatten_keys, read_saved_config
from unlearn.training.checkpoints import step_of
from unlearn.utils.atomic import write_text
from unlearn.utils.hashing import file_sha256

# may differ: they do not move weights; `steps` and `method` have what was taken of a recipe
IGNORED_KEYS = (
    "resume", "run_dir", "method.recipe", "model.recipes", "checkpoint_every",
    "gradient_checkpointing", "logger", "callbacks", "log_images_every", "log_group"
)  # fmt: skip
ERROR_FILE = "error.txt"  # why the run's last job in a sweep failed
OUTPUTS = (  # of a run and of the commands on it; config.yaml last, which says that it is one
    "checkpoints", "evaluation", "export", "images", "steps", "tensorboard", "before_after.png",
    ERROR_FILE, "budget.json", "delta.bin", "environment.json", "failed_step_rank*.pt",
    "images.csv",
    "kohya.safetensors", "lora.safetensors", "metrics.csv", "result.json", "sample.png",
    "unlearned.safetensors", "*.partial", "config.yaml",
)  # fmt: skip


class Progress(NamedTuple):
    """How far an earlier call of a run came.

    Attributes:
        begun: there was one.
        checkpoint: what training goes on from; None: from the first step.
        step: steps made until then.
        trained: the weights are there.
        finished: the evaluation, too.
    """

    begun: bool = False
    checkpoint: Path | None = None
    step: int = 0
    trained: bool = False
    finished: bool = False


def read_progress(config: RunConfig) -> Progress:
    """What is in a run directory, for a call that goes on with it; writes nothing.

    Raises:
        ValueError: it holds another run, or a damaged checkpoint.
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
    if trained:  # what is left to draw decides no weights
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
    return Progress(begun=True, checkpoint=checkpoint, step=step_of(checkpoint))


def config_text(config: RunConfig) -> str:
    """Return the config.yaml of a run."""
    return OmegaConf.to_yaml(OmegaConf.create(dict(config.saved)))


def deciding_values(config: dict[str, Any]) -> dict[str, Any]:
    """What of a config decides a run's result, by dotted keys."""
    return {
        key: value
        for key, value in flatten_keys(config)
        if not any(f"{key}.".startswith(f"{free}.") for free in IGNORED_KEYS)
    }


def first_difference(earlier: dict[str, Any], now: dict[str, Any]) -> tuple[str, str, str] | None:
    """The first key whose value decides a run's result and differs, and both values as text."""
    old, new = deciding_values(earlier), deciding_values(now)
    keys = sorted([*new, *old], key=lambda key: "." not in key)  # `steps` follows from `method`
    for key in keys:
        texts = [repr(values[key]) if key in values else "nothing" for values in (old, new)]
        if texts[0] != texts[1]:
            return key, texts[0], texts[1]
    return None


def is_evaluated(run: Path) -> bool:
    """Whether the evaluation's files are there as they were written; says which are not."""
    path = run / "result.json"
    if not path.exists():
        return False
    try:
        hashes = json.loads(path.read_text(encoding="utf-8"))["sha256"]
    except (ValueError, KeyError, TypeError):
        hashes = {"result.json": ""}
    for name, expected in hashes.items():
        if not (run / name).exists() or file_sha256(run / name) != expected:
            print(f"{run / name}: missing or damaged; the run is evaluated again")
            return False
    return True


def lock_run_dir(run: Path) -> int:
    """A file descriptor; until it is closed, no other process of this machine gets one of the run.

    Raises:
        ValueError: another process has it.
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
    """Make the run directory ready: an earlier run that this one does not go on with is deleted.

    Returns:
        What to close when the run is left, see `lock_run_dir`.

    Raises:
        ValueError: it cannot be written, or another process is at work in it.
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
            for left in run.rglob("*.partial"):  # by a process that was killed
                left.unlink(missing_ok=True)  # another node may have been quicker
        tempfile.TemporaryFile(dir=run).close()
        return held
    except OSError as error:
        if held is not None:
            os.close(held)
        raise ValueError(
            f"run_dir={run}: cannot be written ({error.strerror}); choose another run_dir"
        ) from error


def delete_outputs(run: Path) -> None:
    """Delete what a run and the commands on it wrote, and nothing else."""
    for pattern in OUTPUTS:
        for path in run.glob(pattern):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
