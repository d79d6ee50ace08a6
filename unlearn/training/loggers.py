"""Send metrics, tables and pictures to W&B, TensorBoard and other loggers."""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.errors import HydraException
from hydra.utils import get_class, instantiate
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image
from torch import Tensor

from unlearn.concepts.prompts import SET_NAMES
from unlearn.config.run_config import RunConfig
from unlearn.config.run_files import read_images
from unlearn.evaluation.pictures import pictured_rows, tile_box
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
        log = super().log_metrics
        self.send(lambda: log(metrics, step))

    @rank_zero_only
    def update_summary(self, values: Mapping[str, Any]) -> None:
        """Add values to the run's summary, unless an earlier call has failed."""
        self.send(lambda: self.experiment.summary.update(values))

    def send(self, call: Callable[[], Any]) -> None:
        """Make a call to W&B, unless an earlier call has failed."""
        if self.lost:
            return
        try:
            call()
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


def picture_caption(prompt: str, seed: Any) -> str:
    """Return an image's caption: its prompt and its seed."""
    return f"{prompt} (seed {seed})"


def log_images(
    logger: Logger, key: str, images: Sequence[Tensor], captions: Sequence[str], step: int
) -> None:
    """Send uint8 images (H, W, 3), each with its caption, to a logger that shows images."""
    if isinstance(logger, WandbLogger):
        pictures = [Image.fromarray(image.numpy()) for image in images]
        logger.log_image(key, pictures, step=step, caption=list(captions))
    elif isinstance(logger, TensorBoardLogger):
        for number, (image, caption) in enumerate(zip(images, captions, strict=True)):
            tag = f"{key}/{number:02}"
            logger.experiment.add_image(tag, image, step, dataformats="HWC")
            logger.experiment.add_text(f"{tag}/caption", caption, step)


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
    """Send an evaluation to the loggers: rates, the table, and the images before and after.

    W&B's summary also has the base model's rates and the intervals.

    Args:
        loggers: the run's loggers.
        result: what `result.json` holds.
        run: the run directory.
        step: the step that the evaluation belongs to.
    """
    cells = {
        f"eval/{name}/{metric}": sides
        for name, row in result["sets"].items()
        for metric, sides in row.items()
        if sides["unlearned"]["n"]
    }
    rates = {key: sides["unlearned"]["value"] for key, sides in cells.items()}
    images = read_images(run)
    with contextlib.suppress(ValueError):  # nothing to score
        rates["eval/score"] = forget_keep_score(images)
        rates["eval/retention"] = column_rate(images, "retention").value
    pairs, captions = read_pairs(run, images)
    for logger in loggers:
        if not isinstance(logger, MetricsFile):
            if isinstance(logger, TensorBoardLogger):
                # TensorBoard then shows the rates beside the configuration
                logger.log_hyperparams(logger.hparams, rates, step)
            else:
                logger.log_metrics(rates, step)
            if isinstance(logger, RunWandbLogger):
                logger.update_summary(summary_of(cells))
            log_images(logger, "images/before_after", pairs, captions, step)
            if rates:
                log_table(logger, result, step)
            logger.finalize("success")


def summary_of(cells: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Return the base model's rates and the ends of the unlearned model's intervals, by name."""
    return {
        f"{key}/{name}": value
        for key, sides in cells.items()
        for name, value in (
            ("base", sides["base"]["value"]),
            ("low", sides["unlearned"]["low"]),
            ("high", sides["unlearned"]["high"]),
        )
    }


def read_pairs(run: Path, images: Sequence[Mapping[str, Any]]) -> tuple[list[Tensor], list[str]]:
    """Return the pairs of before_after.png, base above unlearned, and their captions.

    Args:
        run: the run directory.
        images: the rows of its images.csv.

    Returns:
        Images, uint8 (2H, W, 3), and a caption for each.
    """
    pairs, captions = [], []
    with Image.open(run / "before_after.png") as picture:
        whole = torch.from_numpy(np.array(picture.convert("RGB")))
    for name in SET_NAMES:
        for column, row in enumerate(pictured_rows([i for i in images if i["set"] == name])):
            left, top, right, _ = tile_box(whole.shape[1], name, 0, column)
            bottom = tile_box(whole.shape[1], name, 1, column)[3]
            pairs.append(whole[top:bottom, left:right])
            captions.append(f"base above unlearned: {picture_caption(row['prompt'], row['seed'])}")
    return pairs, captions
