"""What `unlearn evaluate` is asked for: models, and the evaluation that each goes through."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from unlearn.cli import load_run
from unlearn.config import check_evaluation, compose, concept_of
from unlearn.sections import plain

USAGE = "usage: unlearn evaluate RUN_DIR... [evaluation=NAME] [overrides]"
OF_A_RUN = {  # overrides that a run directory takes, with a protocol chosen or not
    True: r"[+~]{0,2}evaluation[.=].+|trainer\.[^=]+=.*",
    False: r"(evaluation|trainer)\.[^=]+=.*",
}


class Job(NamedTuple):
    """One model to evaluate: its config and weights, and the folder of its results."""

    config: DictConfig
    weights: Path
    folder: Path


def evaluate_all(arguments: Sequence[str]) -> None:
    """Evaluate every model that is named; nothing starts before all of them are checked.

    Args:
        arguments: run directories or weights from elsewhere, and overrides.

    Raises:
        ValueError: there is no model, or a model or an override is not valid.
    """
    paths, overrides = split(arguments)
    if not paths:
        raise ValueError(USAGE)
    jobs = [job_of(Path(path), overrides) for path in paths]
    if len({job.folder for job in jobs}) < len(jobs):
        raise ValueError(f"{', '.join(paths)}: their results would lie in one folder")
    from unlearn.evaluation.evaluate import evaluate
    from unlearn.evaluation.protocol import read_protocol
    from unlearn.evaluation.published import evaluate_published

    for config, *_ in jobs:
        if config.evaluation.name != "emoji":
            read_protocol(config.evaluation, concept_of(config).name)
    changed = [o for o in overrides if re.match(r"[+~]{0,2}evaluation\.", o)]
    for config, weights, folder in jobs:
        if config.evaluation.name == "emoji":
            evaluate(config, folder)
        else:
            evaluate_published(config, weights, folder / "evaluation", changed)


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Paths and overrides: what holds "=" or begins with "~", unless it is there, is no path."""
    paths = [a for a in arguments if Path(a).exists() or not ("=" in a or a.startswith("~"))]
    return paths, [a for a in arguments if a not in paths]


def job_of(path: Path, overrides: list[str]) -> Job:
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
                "evaluation=NAME, evaluation.KEY=... and trainer.KEY=..."
            )
    config, folder = load_run(str(path))
    if chosen:
        of_trainer = [o for o in overrides if o.startswith("trainer.")]
        config.evaluation = composed([o for o in overrides if o not in of_trainer]).evaluation
        overrides = of_trainer
    OmegaConf.set_struct(config, True)
    try:
        config.merge_with_dotlist(overrides)
    except OmegaConfBaseException as error:
        raise ValueError(f"{', '.join(overrides)}: {str(error).splitlines()[0]}") from error
    if config.evaluation.get("name", "emoji") == "emoji":
        check_evaluation(config)
    return Job(config, folder / "unlearned.safetensors", folder)


def weights_job(path: Path, overrides: list[str]) -> Job:
    """The model of weights from elsewhere, whose config is the command line's.

    Raises:
        ValueError: an override is not valid, there is no concept, or no published protocol.
    """
    config = composed(overrides)
    concept_of(config)
    if config.evaluation.name == "emoji":
        raise ValueError(
            f"evaluation=emoji: {path} is no run directory; choose a published protocol, such as "
            "evaluation=spm_general"
        )
    return Job(config, path, Path(config.out_dir or default_folder(path)))


def default_folder(path: Path) -> Path:
    """Where results of weights from elsewhere lie: named after the file and its folder."""
    whole = path.resolve()
    return Path("runs") / f"evaluate-{whole.parent.name}-{whole.stem}"


def composed(overrides: list[str]) -> DictConfig:
    """conf/evaluate.yaml with overrides, interpolations resolved.

    Raises:
        ValueError: there is no such file or key.
    """
    try:
        config = compose(overrides, "evaluate")
    except HydraException as error:
        reason = " ".join(str(error).partition("Config search path")[0].split())
        raise ValueError(reason) from error
    return OmegaConf.create(plain(config))
