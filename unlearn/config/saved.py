"""Read the configuration of a run from its directory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from unlearn.config.base_model import base_model_name
from unlearn.weights.delta import check_base

WEIGHTS_FILE = "unlearned.safetensors"


def load_run(run: str) -> tuple[Any, Path]:
    """The config of a finished run.

    Raises:
        ValueError: `run` holds no config.yaml of a run, or no unlearned.safetensors of its base.
    """

    folder = Path(run)
    for name in ("config.yaml", "unlearned.safetensors"):
        if not (folder / name).exists():
            raise ValueError(f"{folder}: not a finished run directory, {name} is missing")
    config = read_config(folder / "config.yaml")
    check_base(folder / "unlearned.safetensors", base_model_name(config))
    return config, folder


def read_saved_config(run: Path) -> dict[str, Any]:
    """A run's config.yaml.

    Raises:
        ValueError: it is none, so the folder is not this program's to write in.
    """
    try:
        config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        if {"concept", "method", "seed"} <= config.keys():
            return dict(config)
    except (yaml.YAMLError, UnicodeDecodeError, AttributeError):
        pass
    raise ValueError(
        f"run_dir={run}: its config.yaml is damaged, or not that of a run; choose another run_dir"
    )


def flatten_keys(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value with its dotted key."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from flatten_keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def read_config(path: Path) -> DictConfig:
    """The config.yaml of a run.

    Raises:
        ValueError: it is none; names the file.
    """
    try:
        config = OmegaConf.load(path)
    except (OSError, UnicodeDecodeError, YAMLError, OmegaConfBaseException) as error:
        raise ValueError(f"{path}: not a run's: {' '.join(str(error).split())}") from error
    if not isinstance(config, DictConfig):
        raise ValueError(f"{path}: not a run's: it holds no keys")
    for key in ("concept", "model", "method", "trainer", "evaluation"):
        if not OmegaConf.is_config(config.get(key)):
            raise ValueError(f"{path}: not a run's: it has no section {key!r}")
    return config


def earlier_run_dir(after: str) -> Path:
    """The run directory that `after` names: it, or the weights in it."""
    path = Path(after)
    return path.parent if path.name == WEIGHTS_FILE else path
