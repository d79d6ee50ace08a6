"""Run `unlearn evaluate`: the models, and the evaluation that each goes through."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from omegaconf import DictConfig, OmegaConf

from unlearn.config.base_model import resolve_precision
from unlearn.config.compose import compose
from unlearn.config.concepts import build_run_concept
from unlearn.config.overrides import hydra_errors_as_value_errors, split_arguments
from unlearn.config.parse import check_evaluation
from unlearn.config.saved import load_run
from unlearn.config.sections import to_container
from unlearn.evaluation.evaluate import evaluate
from unlearn.evaluation.protocol import read_protocol
from unlearn.evaluation.run_protocol import evaluate_published
from unlearn.utils.errors import RunError, refuse
from unlearn.utils.run_errors import as_run_errors

USAGE = "usage: unlearn evaluate RUN_DIR... [evaluation=NAME] [overrides]"
OF_TRAINER = r"trainer\.(accelerator|precision)=.*"  # overrides that decide how images are drawn
OF_A_RUN = {  # overrides that a run directory takes, with a protocol chosen or not
    True: rf"[+~]{{0,2}}evaluation[.=].+|{OF_TRAINER}",
    False: rf"evaluation\.[^=]+=.*|sampling_batch_size=.*|{OF_TRAINER}",
}
LESS = "a lower evaluation.batch_size or trainer.precision=bf16-mixed"  # memory for a protocol


class Job(NamedTuple):
    """One model to evaluate: its config and weights, and the folder of its results."""

    config: DictConfig
    weights: Path
    folder: Path


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
    if len({job.folder for job in jobs}) < len(jobs):
        raise ValueError(f"{', '.join(paths)}: their results would lie in one folder")

    for config, *_ in jobs:
        resolve_precision(config)
        if config.evaluation.name != "prompt_sets":
            read_protocol(config.evaluation, build_run_concept(config).name)
    changed = [o for o in overrides if re.match(r"[+~]{0,2}evaluation\.", o)]
    for config, weights, folder in jobs:
        if config.evaluation.name == "prompt_sets":
            with as_run_errors(weights):
                evaluate(config, folder, None if "method" in config else weights)
        else:
            with as_run_errors(weights, LESS):
                evaluate_published(config, weights, folder / "evaluation", changed)


def job_for(path: Path, overrides: list[str]) -> Job:
    """The model at a path: a run directory, or a weights file or diffusers folder.

    Raises:
        ValueError: it is neither, or an override is not valid.
    """
    if not path.exists():
        raise ValueError(f"{path}: there is no such file or folder")
    foreign = path.is_file() or any(
        (path / name).exists() for name in ("model_index.json", "config.json")
    )
    if foreign and not (path / "unlearned.safetensors").exists():
        return weights_job(path, overrides)
    chosen = any(o.startswith("evaluation=") for o in overrides)
    for override in overrides:
        if not re.fullmatch(OF_A_RUN[chosen], override):
            raise ValueError(
                f"{override}: {path} is a run directory, with a config of its own; allowed are "
                "evaluation=NAME, evaluation.KEY=..., trainer.accelerator=..., "
                "trainer.precision=... and, of the four prompt sets, sampling_batch_size=..."
            )
    config, folder = load_run(str(path))
    if chosen:
        of_trainer = [o for o in overrides if o.startswith("trainer.")]
        config.evaluation = compose_evaluation(
            [o for o in overrides if o not in of_trainer]
        ).evaluation
        config.trainer.precision = "32-true"  # as publications draw, unless another is asked for
        overrides = of_trainer
    OmegaConf.set_struct(config, True)
    with hydra_errors_as_value_errors(overrides):
        config.merge_with_dotlist(overrides)
    check_drawing(config)
    return Job(config, folder / "unlearned.safetensors", folder)


def check_drawing(config: DictConfig) -> None:
    """Refuse a way to draw the four prompt sets, where they are what is drawn, that is not valid.

    Raises:
        ValueError: names the key, the value and what is allowed.
    """
    batch = config.get("sampling_batch_size")
    if batch is not None and (not isinstance(batch, int) or batch < 1):
        raise ValueError(f"sampling_batch_size={batch}: a whole number of at least 1 is needed")
    if config.evaluation.get("name", "prompt_sets") == "prompt_sets":
        check_evaluation(config)


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
    build_run_concept(config)
    check_drawing(config)
    return Job(config, path, Path(config.out_dir or default_folder(path)))


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
