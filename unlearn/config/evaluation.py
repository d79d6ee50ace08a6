"""Compose the configuration of an evaluation of one model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from unlearn.config.compose import compose
from unlearn.config.overrides import hydra_errors_as_value_errors
from unlearn.config.run_config import ModelConfig
from unlearn.config.saved import (
    WEIGHTS_FILE,
    load_run_config,
    parse_model_config,
    read_run_config,
)
from unlearn.config.sections import to_container
from unlearn.utils.credentials import check_secrets
from unlearn.weights.importing import is_external_folder

TRAINER_OVERRIDES = r"trainer\.(accelerator|precision)=.*"  # overrides that change images
RUN_OVERRIDES = {  # overrides that a run directory takes; True: `evaluation=` is among them
    True: rf"[+~]{{0,2}}evaluation[.=].+|{TRAINER_OVERRIDES}",
    False: rf"evaluation\.[^=]+=.*|sampling_batch_size=.*|{TRAINER_OVERRIDES}",
}


class EvaluationRequest(NamedTuple):
    """One model to evaluate.

    Attributes:
        config: the model's configuration; the results go to its folder.
        external_weights: weights made outside this package; None: the run's own weights.
        protocol: the config section of a published protocol; None: the four prompt sets.
    """

    config: ModelConfig
    external_weights: Path | None
    protocol: dict[str, Any] | None


def parse_evaluation(path: Path, overrides: Sequence[str]) -> EvaluationRequest:
    """Return the evaluation of the model at a path: a run, or weights made outside this package.

    Args:
        path: a run directory, a weights file or a diffusers folder.
        overrides: of conf/evaluate.yaml, or of the config.yaml of a run directory.

    Raises:
        ValueError: the path does not exist, or an override is not valid.
    """
    if not path.exists():
        raise ValueError(f"{path}: there is no such file or folder")
    external = path.is_file() or is_external_folder(path)
    if external and not (path / WEIGHTS_FILE).exists():
        return parse_external_evaluation(path, overrides)
    return parse_run_evaluation(path, overrides)


def parse_run_evaluation(path: Path, overrides: Sequence[str]) -> EvaluationRequest:
    """Return the evaluation of a finished run, with its configuration changed by the overrides.

    Raises:
        ValueError: the folder holds no finished run, or an override is not allowed for a run.
    """
    chosen = any(o.startswith("evaluation=") for o in overrides)
    for override in overrides:
        if not re.fullmatch(RUN_OVERRIDES[chosen], override):
            raise ValueError(
                f"{override}: {path} is a run directory, with a config of its own; allowed are "
                "evaluation=NAME, evaluation.KEY=..., trainer.accelerator=..., "
                "trainer.precision=... and, of the four prompt sets, sampling_batch_size=..."
            )
    load_run_config(path)  # refuses a damaged file, before an override
    config = read_run_config(path)
    own = list(overrides)
    if chosen:
        own = [o for o in overrides if o.startswith("trainer.")]
        config.evaluation = compose_evaluation([o for o in overrides if o not in own]).evaluation
        config.trainer.precision = "32-true"  # the publications' precision
    OmegaConf.set_struct(config, True)
    with hydra_errors_as_value_errors(own):
        config.merge_with_dotlist(own)
    check_secrets(to_container(config))
    model = parse_model_config(config, path)
    return EvaluationRequest(model, None, protocol_section(config, model))


def parse_external_evaluation(path: Path, overrides: Sequence[str]) -> EvaluationRequest:
    """Return the evaluation of external weights, configured by the overrides alone.

    Raises:
        ValueError: an override is not valid, or no concept is chosen.
    """
    for override in overrides:
        if re.match(r"[+~]{0,2}trainer\.", override) and not re.fullmatch(
            TRAINER_OVERRIDES, override
        ):
            raise ValueError(
                f"{override}: plays no part in an evaluation; of the section trainer, "
                "trainer.accelerator and trainer.precision do"
            )
    config = compose_evaluation(overrides)
    check_secrets(to_container(config))
    model = parse_model_config(config, Path(config.out_dir or default_folder(path)))
    return EvaluationRequest(model, path, protocol_section(config, model))


def protocol_section(config: DictConfig, model: ModelConfig) -> dict[str, Any] | None:
    """Return the config section of a published protocol, or None for the four prompt sets."""
    return None if model.evaluation is not None else dict(to_container(config.evaluation))


def default_folder(path: Path) -> Path:
    """Return the default result folder of external weights, named after the file and its parent."""
    whole = path.resolve()
    return Path("runs") / f"evaluate-{whole.parent.name}-{whole.stem}"


def compose_evaluation(overrides: Sequence[str]) -> DictConfig:
    """Return conf/evaluate.yaml with the overrides applied and interpolations resolved.

    Raises:
        ValueError: an override names a file or a key that does not exist.
    """
    return OmegaConf.create(to_container(compose(list(overrides), "evaluate")))
