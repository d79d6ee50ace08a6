"""Compose what an evaluation of one model is: its configuration, and overrides."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from unlearn.config.compose import compose
from unlearn.config.overrides import hydra_errors_as_value_errors
from unlearn.config.run_config import ModelConfig
from unlearn.config.saved import WEIGHTS_FILE, parse_model_config, read_run_config
from unlearn.config.sections import to_container
from unlearn.weights.delta import check_base

OF_TRAINER = r"trainer\.(accelerator|precision)=.*"  # overrides that decide how images are drawn
OF_A_RUN = {  # overrides that a run directory takes, with a protocol chosen or not
    True: rf"[+~]{{0,2}}evaluation[.=].+|{OF_TRAINER}",
    False: rf"evaluation\.[^=]+=.*|sampling_batch_size=.*|{OF_TRAINER}",
}


class EvaluationRequest(NamedTuple):
    """One model to evaluate.

    Attributes:
        config: of the model; the results lie in its folder.
        external_weights: weights from elsewhere; None: the run's.
        protocol: the section of a published protocol; None: the four prompt sets.
    """

    config: ModelConfig
    external_weights: Path | None
    protocol: dict[str, Any] | None


def parse_evaluation(path: Path, overrides: Sequence[str]) -> EvaluationRequest:
    """Return the evaluation of the model at a path: a run, or weights from elsewhere.

    Args:
        path: a run directory, a weights file or a diffusers folder.
        overrides: of conf/evaluate.yaml; a run directory brings a configuration of its own.

    Raises:
        ValueError: the path is neither, or an override is not valid.
    """
    if not path.exists():
        raise ValueError(f"{path}: there is no such file or folder")
    external = path.is_file() or any(
        (path / name).exists() for name in ("model_index.json", "config.json")
    )
    if external and not (path / WEIGHTS_FILE).exists():
        return of_external_weights(path, overrides)
    return of_run(path, overrides)


def of_run(path: Path, overrides: Sequence[str]) -> EvaluationRequest:
    """Return the evaluation of a finished run, with what the overrides change of it.

    Raises:
        ValueError: there is no finished run, or an override is not one that a run takes.
    """
    chosen = any(o.startswith("evaluation=") for o in overrides)
    for override in overrides:
        if not re.fullmatch(OF_A_RUN[chosen], override):
            raise ValueError(
                f"{override}: {path} is a run directory, with a config of its own; allowed are "
                "evaluation=NAME, evaluation.KEY=..., trainer.accelerator=..., "
                "trainer.precision=... and, of the four prompt sets, sampling_batch_size=..."
            )
    config = read_run_config(path)
    own = list(overrides)
    if chosen:
        own = [o for o in overrides if o.startswith("trainer.")]
        config.evaluation = compose_evaluation([o for o in overrides if o not in own]).evaluation
        config.trainer.precision = "32-true"  # as publications draw, unless another is asked for
    OmegaConf.set_struct(config, True)
    with hydra_errors_as_value_errors(own):
        config.merge_with_dotlist(own)
    model = parse_model_config(config, path)
    check_base(model.weights, model.base.name)
    return EvaluationRequest(model, None, protocol_section(config, model))


def of_external_weights(path: Path, overrides: Sequence[str]) -> EvaluationRequest:
    """Return the evaluation of weights from elsewhere, whose configuration is the overrides'.

    Raises:
        ValueError: an override is not valid, or there is no concept.
    """
    for override in overrides:
        if re.match(r"[+~]{0,2}trainer\.", override) and not re.fullmatch(OF_TRAINER, override):
            raise ValueError(
                f"{override}: plays no part in an evaluation; of the section trainer, "
                "trainer.accelerator and trainer.precision do"
            )
    config = compose_evaluation(overrides)
    model = parse_model_config(config, Path(config.out_dir or default_folder(path)))
    return EvaluationRequest(model, path, protocol_section(config, model))


def protocol_section(config: DictConfig, model: ModelConfig) -> dict[str, Any] | None:
    """Return the section of a published protocol, or None for the four prompt sets."""
    return None if model.evaluation is not None else dict(to_container(config.evaluation))


def default_folder(path: Path) -> Path:
    """Return where results of weights from elsewhere lie: named after the file and its folder."""
    whole = path.resolve()
    return Path("runs") / f"evaluate-{whole.parent.name}-{whole.stem}"


def compose_evaluation(overrides: Sequence[str]) -> DictConfig:
    """Return conf/evaluate.yaml with overrides, interpolations resolved.

    Raises:
        ValueError: there is no such file or key.
    """
    return OmegaConf.create(to_container(compose(list(overrides), "evaluate")))
