"""Run `unlearn evaluate`: the models, and the evaluation that each goes through."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from omegaconf import DictConfig, OmegaConf

from unlearn.config.compose import compose
from unlearn.config.overrides import hydra_errors_as_value_errors, split_arguments
from unlearn.config.run_config import ModelConfig
from unlearn.config.saved import WEIGHTS_FILE, parse_model_config, read_run_config
from unlearn.config.sections import to_container
from unlearn.evaluation.evaluate import evaluate
from unlearn.evaluation.protocol import Protocol, read_protocol
from unlearn.evaluation.run_protocol import evaluate_published
from unlearn.utils.errors import RunError, refuse
from unlearn.utils.run_errors import as_run_errors
from unlearn.weights.delta import check_base

USAGE = "usage: unlearn evaluate RUN_DIR... [evaluation=NAME] [overrides]"
OF_TRAINER = r"trainer\.(accelerator|precision)=.*"  # overrides that decide how images are drawn
OF_A_RUN = {  # overrides that a run directory takes, with a protocol chosen or not
    True: rf"[+~]{{0,2}}evaluation[.=].+|{OF_TRAINER}",
    False: rf"evaluation\.[^=]+=.*|sampling_batch_size=.*|{OF_TRAINER}",
}
LESS = "a lower evaluation.batch_size or trainer.precision=bf16-mixed"  # memory for a protocol


class Job(NamedTuple):
    """One model to evaluate.

    Attributes:
        config: of the model; the results lie in its folder.
        weights: weights from elsewhere; None: the run's.
        protocol: a published one; None: the four prompt sets.
    """

    config: ModelConfig
    weights: Path | None
    protocol: Protocol | None


def run(arguments: list[str]) -> None:
    """Evaluate the models that the arguments name."""
    try:
        evaluate_all(arguments)
    except RunError as error:
        refuse(error)


def evaluate_all(arguments: Sequence[str]) -> None:
    """Evaluate every model that is named; nothing starts before all of them are checked.

    Args:
        arguments: run directories or weights from elsewhere, and overrides.

    Raises:
        ValueError: there is no model, or a model or an override is not valid.
        RunError: a disk or a memory that gives no more.
    """
    paths, overrides = split_arguments(arguments)
    if not paths:
        raise ValueError(USAGE)
    jobs = [job_for(Path(path), overrides) for path in paths]
    if len({job.config.folder for job in jobs}) < len(jobs):
        raise ValueError(f"{', '.join(paths)}: their results would lie in one folder")
    changed = [o for o in overrides if re.match(r"[+~]{0,2}evaluation\.", o)]
    for config, external, protocol in jobs:
        weights = external or config.weights
        if protocol is None:
            with as_run_errors(weights):
                evaluate(config, external)
        else:
            with as_run_errors(weights, LESS):
                evaluate_published(config, protocol, weights, changed)


def job_for(path: Path, overrides: list[str]) -> Job:
    """Return the model at a path: a run directory, or a weights file or diffusers folder.

    Raises:
        ValueError: it is neither, or an override is not valid.
    """
    if not path.exists():
        raise ValueError(f"{path}: there is no such file or folder")
    external = path.is_file() or any(
        (path / name).exists() for name in ("model_index.json", "config.json")
    )
    if external and not (path / WEIGHTS_FILE).exists():
        return weights_job(path, overrides)
    chosen = any(o.startswith("evaluation=") for o in overrides)
    for override in overrides:
        if not re.fullmatch(OF_A_RUN[chosen], override):
            raise ValueError(
                f"{override}: {path} is a run directory, with a config of its own; allowed are "
                "evaluation=NAME, evaluation.KEY=..., trainer.accelerator=..., "
                "trainer.precision=... and, of the four prompt sets, sampling_batch_size=..."
            )
    config = read_run_config(path)
    if chosen:
        of_trainer = [o for o in overrides if o.startswith("trainer.")]
        others = [o for o in overrides if o not in of_trainer]
        config.evaluation = compose_evaluation(others).evaluation
        config.trainer.precision = "32-true"  # as publications draw, unless another is asked for
        overrides = of_trainer
    OmegaConf.set_struct(config, True)
    with hydra_errors_as_value_errors(overrides):
        config.merge_with_dotlist(overrides)
    model = parse_model_config(config, path)
    check_base(model.weights, model.base.name)
    return Job(model, None, chosen_protocol(config, model))


def chosen_protocol(config: DictConfig, model: ModelConfig) -> Protocol | None:
    """Return the published protocol that a configuration names, or None for the four prompt sets.

    Raises:
        ValueError: a value is not allowed, or the protocol has nothing for the concept.
    """
    if model.evaluation is not None:
        return None
    return read_protocol(to_container(config.evaluation), model.concept.name)


def weights_job(path: Path, overrides: list[str]) -> Job:
    """The model of weights from elsewhere, whose config is the command line's.

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
    assert model.concept  # refused now, if it is not valid
    return Job(model, path, chosen_protocol(config, model))


def default_folder(path: Path) -> Path:
    """Where results of weights from elsewhere lie: named after the file and its folder."""
    whole = path.resolve()
    return Path("runs") / f"evaluate-{whole.parent.name}-{whole.stem}"


def compose_evaluation(overrides: list[str]) -> DictConfig:
    """conf/evaluate.yaml with overrides, interpolations resolved.

    Raises:
        ValueError: there is no such file or key.
    """
    return OmegaConf.create(to_container(compose(overrides, "evaluate")))
