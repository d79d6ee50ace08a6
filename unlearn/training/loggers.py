"""Send metrics, tables and pictures to W&B, TensorBoard and other loggers."""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from hydra.errors import HydraException
from hydra.utils import get_class, instantiate
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image

from unlearn.concepts.prompts import SET_NAMES
from unlearn.config.run_config import RunConfig
from unlearn.config.run_files import read_images
from unlearn.evaluation.pictures import pictured_rows
from unlearn.evaluation.score import column_rate, forget_keep_score
from unlearn.evaluation.table import markdown_table
from unlearn.training.metrics_file import MetricsFile
from unlearn.utils.checks import check_choice


class RunWandbLogger(WandbLogger):
    """A W&B logger that lets a run go on, with a warning, where W&B fails in the middle of it."""

    lost = False
    MODES = ("online", "offline")

    @classmethod
    def check_options(cls, key: str, options: Mapping[str, Any]) -> None:
        """Refuse options that W&B would refuse in the middle of a run.

        Raises:
            ValueError: the mode is none of `MODES`.
        """
        check_choice(f"{key}.mode", options.get("mode", "online"), cls.MODES)

    @classmethod
    def for_run(
        cls, run: Path, step: int, saved: Mapping[str, Any], **options: Any
    ) -> RunWandbLogger:
        """Return the logger of a run, which continues the W&B run of an earlier call.

        Args:
            run: the run directory.
            step: the step that the run resumes after; 0: the run begins, as a new W&B run.
            saved: the configuration that W&B shows.
            options: further options of `WandbLogger`.
        """
        own = {"id": earlier_wandb_id(run) if step else None, "resume": "allow", "name": run.name}
        return cls(**{**own, "save_dir": run, "config": dict(saved), **options})

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run, which begins at the first call.

        Raises:
            ValueError: W&B cannot begin a run.
        """
        import wandb

        try:
            return super().experiment
        except wandb.errors.Error as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"logger=wandb: {reason}; logger.wandb.mode=offline keeps the run here, to be sent "
                "later with `wandb sync`, and logger=csv does without"
            ) from error

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Send metrics to W&B, unless an earlier call has failed."""
        if self.lost:
            return
        try:
            super().log_metrics(metrics, step)
        except Exception as error:  # whatever it is, it is no reason to lose the run
            self.lost = True
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            warnings.warn(f"W&B is lost, the run goes on without it ({reason})", stacklevel=2)


def earlier_wandb_id(run: Path) -> str | None:
    """Return the W&B id of an earlier call in the run directory, which W&B itself keeps there."""
    names = sorted(path.name for path in (run / "wandb").glob("*run-*-*"))
    return names[-1].rpartition("-")[2] if names else None


class RunTensorBoardLogger(TensorBoardLogger):
    """A TensorBoard logger that writes to the run directory."""

    @classmethod
    def for_run(
        cls, run: Path, step: int, saved: Mapping[str, Any], **options: Any
    ) -> RunTensorBoardLogger:
        """Return the logger of a run.

        Args:
            run: the run directory.
            step: the step that the run resumes after; what was logged later is removed.
            saved: the configuration that TensorBoard shows.
            options: further options of `TensorBoardLogger`.
        """
        own = {"name": "", "version": "tensorboard", "default_hp_metric": False}
        board = cls(run, **{**own, "purge_step": step, **options})
        board.log_hyperparams(dict(saved))
        return board


def build_loggers(config: RunConfig, step: int = 0) -> list[Logger]:
    """Return the loggers of a run: metrics.csv in the run directory first, then the chosen ones.

    Args:
        config: the run's configuration.
        step: the step that the run resumes after; the loggers then continue their earlier logs.

    Raises:
        ValueError: a logger cannot be made with its options.
    """
    loggers: list[Logger] = [MetricsFile(config.folder / "metrics.csv")]
    for name, entry in config.loggers.items():
        with errors_naming(f"logger.{name}"):
            loggers.append(build_logger(config, step, entry))
    return loggers


def build_logger(config: RunConfig, step: int, entry: Mapping[str, Any]) -> Logger:
    """Return the logger that an entry of the section `logger` names.

    A class with `for_run`, as this package's have it, is made by that method. Another class gets
    the run directory as `save_dir`, where it takes one and the entry gives none.
    """
    kind = get_class(entry["_target_"])
    if hasattr(kind, "for_run"):
        options = {key: value for key, value in entry.items() if key != "_target_"}
        ours: Logger = kind.for_run(config.folder, step, config.saved, **options)
        return ours
    takes = inspect.signature(kind).parameters
    place = {"save_dir": str(config.folder)} if "save_dir" in {*takes} - {*entry} else {}
    logger: Logger = instantiate(entry, **place)
    logger.log_hyperparams(dict(config.saved))
    return logger


def build_callbacks(config: RunConfig) -> list[Callback]:
    """Return the callbacks of the section `callbacks`.

    Raises:
        ValueError: a callback cannot be made with its options.
    """
    callbacks: list[Callback] = []
    for name, entry in config.callbacks.items():
        with errors_naming(f"callbacks.{name}"):
            callbacks.append(instantiate(entry))
    return callbacks


@contextmanager
def errors_naming(key: str) -> Iterator[None]:
    """Turn errors of an instantiation inside the context into a `ValueError` that names the key."""
    try:
        yield
    except (HydraException, TypeError, ModuleNotFoundError, MisconfigurationException) as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise ValueError(f"{key}: {reason}") from error


def picture_caption(drawn: Iterable[tuple[str, Any]]) -> str:
    """Return a caption with the prompts and seeds of a picture, in reading order."""
    return " | ".join(f"{prompt} (seed {seed})" for prompt, seed in drawn)


def log_image(logger: Logger, key: str, image: torch.Tensor, step: int, caption: str) -> None:
    """Send a uint8 image (H, W, 3) to a logger that shows images."""
    if isinstance(logger, WandbLogger):
        logger.log_image(key, [Image.fromarray(image.numpy())], step=step, caption=[caption])
    elif isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image(key, image, step, dataformats="HWC")
        logger.experiment.add_text(f"{key}/caption", caption, step)


INTERVAL_FIELDS = ("value", "low", "high")


def log_table(logger: Logger, result: dict[str, Any], step: int) -> None:
    """Send the rates of the four sets, and of each concept where there are several.

    Each rate has its interval.
    """
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_text("evaluation", markdown_table(result), step)
    elif isinstance(logger, WandbLogger):
        parts = {result["concept"]: result, **result.get("concepts", {})}
        sides = [f"{side} {end}" for side in ("base", "unlearned") for end in INTERVAL_FIELDS]
        data = [
            [
                concept,
                name,
                metric,
                *(both[s][e] for s in both for e in INTERVAL_FIELDS),
                both["base"]["n"],
            ]
            for concept, part in parts.items()
            for name, row in part["sets"].items()
            for metric, both in row.items()
        ]
        columns = ["concept", "set", "metric", *sides, "n"]
        logger.log_table("evaluation", columns, data, step=step)


def log_result(loggers: list[Logger], result: dict[str, Any], run: Path, step: int) -> None:
    """Send an evaluation to the loggers: rates, the table, and the picture before and after.

    Args:
        loggers: the run's loggers.
        result: what `result.json` holds.
        run: the run directory.
        step: the step that the evaluation belongs to.
    """
    rates = {
        f"eval/{name}/{metric}": sides["unlearned"]["value"]
        for name, row in result["sets"].items()
        for metric, sides in row.items()
        if sides["unlearned"]["n"]
    }
    images = read_images(run)
    with contextlib.suppress(ValueError):  # nothing to score
        rates["eval/score"] = forget_keep_score(images)
        rates["eval/retention"] = column_rate(images, "retention").value
    drawn = [
        i for name in SET_NAMES for i in pictured_rows([i for i in images if i["set"] == name])
    ]
    caption = f"base above unlearned: {picture_caption((i['prompt'], i['seed']) for i in drawn)}"
    with Image.open(run / "before_after.png") as picture:
        data = torch.frombuffer(bytearray(picture.convert("RGB").tobytes()), dtype=torch.uint8)
        image = data.view(picture.height, picture.width, 3)
    for logger in loggers:
        if not isinstance(logger, MetricsFile):
            if isinstance(logger, TensorBoardLogger):
                # TensorBoard then shows the rates beside the configuration
                logger.log_hyperparams(logger.hparams, rates, step)
            else:
                logger.log_metrics(rates, step)
            log_image(logger, "images/before_after", image, step, caption)
            if rates:
                log_table(logger, result, step)
            logger.finalize("success")
