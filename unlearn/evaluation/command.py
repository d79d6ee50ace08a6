"""What `unlearn evaluate` is asked for: models, and the evaluation that each goes through."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from omegaconf import DictConfig, OmegaConf

from unlearn.cli import load_run
from unlearn.config import check_evaluation, compose, concept_of, precision_of
from unlearn.faults import explained
from unlearn.overrides import said_plainly
from unlearn.sections import plain

USAGE = "usage: unlearn evaluate RUN_DIR... [evaluation=NAME] [overrides]"
OF_TRAINER = r"trainer\.(accelerator|precision)=.*"  # overrides that decide how images are drawn
OF_A_RUN = {  # overrides that a run directory takes, with a protocol chosen or not
    True: rf"[+~]{{0,2}}evaluation[.=].+|{OF_TRAINER}",
    False: rf"evaluation\.[^=]+=.*|drawing_batch=.*|{OF_TRAINER}",
}
LESS = "a lower evaluation.batch_size or trainer.precision=bf16-mixed"  # memory for a protocol


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
        RunError: a disk or a memory that gives no more.
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
        precision_of(config)
        if config.evaluation.name != "emoji":
            read_protocol(config.evaluation, concept_of(config).name)
    changed = [o for o in overrides if re.match(r"[+~]{0,2}evaluation\.", o)]
    for config, weights, folder in jobs:
        if config.evaluation.name == "emoji":
            with explained(weights):
                evaluate(config, folder, None if "method" in config else weights)
        else:
            with explained(weights, LESS):
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
                "evaluation=NAME, evaluation.KEY=..., trainer.accelerator=..., "
                "trainer.precision=... and, of the four prompt sets, drawing_batch=..."
            )
    config, folder = load_run(str(path))
    if chosen:
        of_trainer = [o for o in overrides if o.startswith("trainer.")]
        config.evaluation = composed([o for o in overrides if o not in of_trainer]).evaluation
        config.trainer.precision = "32-true"  # as publications draw, unless another is asked for
        overrides = of_trainer
    OmegaConf.set_struct(config, True)
    with said_plainly(overrides):
        config.merge_with_dotlist(overrides)
    check_drawing(config)
    return Job(config, folder / "unlearned.safetensors", folder)


def check_drawing(config: DictConfig) -> None:
    """Refuse a way to draw the four prompt sets, where they are what is drawn, that is not valid.

    Raises:
        ValueError: names the key, the value and what is allowed.
    """
    batch = config.get("drawing_batch")
    if batch is not None and (not isinstance(batch, int) or batch < 1):
        raise ValueError(f"drawing_batch={batch}: a whole number of at least 1 is needed")
    if config.evaluation.get("name", "emoji") == "emoji":
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
    config = composed(overrides)
    concept_of(config)
    check_drawing(config)
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
    return OmegaConf.create(plain(compose(overrides, "evaluate")))
