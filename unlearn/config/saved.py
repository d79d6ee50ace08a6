"""Read the configuration of a run from its directory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from unlearn.config.base_model import BaseModel, resolve_precision
from unlearn.config.concepts import earlier_sections, parse_concept, trained_sections
from unlearn.config.run_config import ModelConfig
from unlearn.config.schema import ACCELERATORS, PROMPT_SETS, EvaluationOptions, ModelOptions
from unlearn.config.sections import parse_section, to_container
from unlearn.utils.checks import check_choice
from unlearn.utils.credentials import nested_values
from unlearn.utils.files import check_yaml_size, damage_as_value_errors, parse_yaml, read_text
from unlearn.weights.delta import check_base_model

WEIGHTS_FILE = "unlearned.safetensors"


def load_run_config(run: Path) -> ModelConfig:
    """Return the configuration of a finished run, for drawing and evaluation.

    Raises:
        ValueError: the folder has no config.yaml of a run, or no unlearned.safetensors of its base.
    """
    read = read_run_config(run)
    with damage_as_value_errors(run / "config.yaml"):
        config = parse_model_config(read, run)
    check_base_model(config.weights, config.base.name)
    return config


def read_run_config(run: Path) -> DictConfig:
    """Return the config.yaml of a finished run.

    Raises:
        ValueError: config.yaml or the weights are missing, or config.yaml is not a run's.
    """
    for name in ("config.yaml", WEIGHTS_FILE):
        if not (run / name).exists():
            raise ValueError(f"{run}: not a finished run directory, {name} is missing")
    return read_config(run / "config.yaml")


def parse_model_config(config: DictConfig, folder: Path) -> ModelConfig:
    """Return the part of a configuration that drawing and evaluating a model needs.

    Args:
        config: a run's config.yaml, or a composed conf/evaluate.yaml.
        folder: where the results lie, and a run's weights.

    Raises:
        ValueError: a value is not allowed; names the key, the value and what is allowed.
    """
    model = parse_section(config.model, "model", ModelOptions)
    evaluation = dict(to_container(config.evaluation))
    name = evaluation.get("name", PROMPT_SETS)
    batch = config.get("sampling_batch_size")
    if batch is not None and (not isinstance(batch, int) or batch < 1):
        raise ValueError(f"sampling_batch_size={batch}: a whole number of at least 1 is needed")
    accelerator = str(config.trainer.accelerator)
    check_choice("trainer.accelerator", accelerator, ACCELERATORS)
    return ModelConfig(
        sections=tuple(parse_concept(own) for own in trained_sections(config)),
        earlier=tuple(parse_concept(own) for own in earlier_sections(config)),
        vocabulary=model.vocabulary,
        base=BaseModel.of(model),
        guidance_scale=model.guidance_scale,
        sampling_batch_size=batch,
        precision=resolve_precision(str(config.trainer.precision), accelerator),
        accelerator=accelerator,
        evaluation=parse_section(evaluation, "evaluation", EvaluationOptions)
        if name == PROMPT_SETS
        else None,
        method=(config.get("method") or {}).get("name"),
        folder=folder,
        saved=to_container(config),
    )


def read_config(path: Path) -> DictConfig:
    """Return a run's config.yaml.

    Raises:
        ValueError: the file is not a run's; names the file.
    """
    try:
        text = read_text(path)
        check_yaml_size(text, "config.yaml")
        config = OmegaConf.create(text)  # with OmegaConf's rules of what is a number
    except (OSError, ValueError, YAMLError, OmegaConfBaseException) as error:
        raise ValueError(f"{path}: not a run's: {' '.join(str(error).split())}") from error
    if not isinstance(config, DictConfig) or not config:
        raise ValueError(f"{path}: not a run's: it holds no keys")
    for key, value in nested_values(OmegaConf.to_container(config)):
        if "${" in value:  # a stranger's file could ask for a secret of the environment
            raise ValueError(f"{path}: not a run's: {key} is not resolved ({value})")
    for key in ("concept", "model", "method", "trainer", "evaluation"):
        if not OmegaConf.is_config(config.get(key)):
            raise ValueError(f"{path}: not a run's: it has no section {key!r}")
    if not isinstance(config.method, DictConfig) or not isinstance(config.method.get("name"), str):
        raise ValueError(f"{path}: not a run's: it has no method.name")
    return config


def read_saved_config(run: Path) -> dict[str, Any]:
    """Return the config.yaml of a run directory that a new call would write to.

    Raises:
        ValueError: the file is not a run's, so a run must not write to that folder.
    """
    try:
        config = parse_yaml(read_text(run / "config.yaml"), "config.yaml")
        if {"concept", "method", "seed"} <= config.keys():
            return dict(config)
    except (OSError, ValueError, AttributeError):
        pass
    raise ValueError(
        f"run_dir={run}: its config.yaml is damaged, or not that of a run; choose another run_dir"
    )


def flatten_keys(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each value of nested mappings with its dotted key."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from flatten_keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def earlier_run_dir(after: str) -> Path:
    """Return the run directory that the key `after` names, by its path or that of its weights."""
    path = Path(str(after))
    return path.parent if path.name == WEIGHTS_FILE else path
