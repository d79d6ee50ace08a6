"""Send metrics, tables and pictures to W&B and TensorBoard."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig
from PIL import Image

from unlearn.concepts.prompts import SETS
from unlearn.config.sections import config_to_save, to_container
from unlearn.evaluation.pictures import pictured_rows
from unlearn.evaluation.score import column_rate, read_images, score
from unlearn.evaluation.table import markdown_table
from unlearn.training.metrics_file import MetricsFile


class Dashboard(WandbLogger):
    """W&B; where it fails in the middle of a run, the run says so and goes on without it."""

    lost = False

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """W&B's run, begun at the first call.

        Raises:
            ValueError: it cannot begin.
        """
        import wandb

        try:
            return super().experiment
        except wandb.errors.Error as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"logger=wandb: {reason}; logger.mode=offline keeps the run here, to be sent later "
                "with `wandb sync`, and logger=csv does without"
            ) from error

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Send them, unless a call has failed before."""
        if self.lost:
            return
        try:
            super().log_metrics(metrics, step)
        except Exception as error:  # whatever it is, it is no reason to lose the run
            self.lost = True
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            warnings.warn(f"W&B is lost, the run goes on without it ({reason})", stacklevel=2)


def earlier_id(run: Path) -> str | None:
    """The W&B id of an earlier call in the run directory, which W&B itself keeps there."""
    names = sorted(path.name for path in (run / "wandb").glob("*run-*-*"))
    return names[-1].rpartition("-")[2] if names else None


def build_loggers(config: DictConfig, run: Path, step: int = 0) -> list[Logger]:
    """metrics.csv in the run directory first, then the chosen logger.

    Args:
        config: of the run.
        run: the run directory.
        step: that the run goes on after; the loggers then go on too.
    """
    loggers: list[Logger] = [MetricsFile(run / "metrics.csv")]
    options = config.logger
    if options.name == "tensorboard":
        board = TensorBoardLogger(
            run, name="", version="tensorboard", default_hp_metric=False, purge_step=step
        )
        board.log_hyperparams(config_to_save(config))
        loggers.append(board)
    elif options.name == "wandb":
        loggers.append(
            Dashboard(
                id=earlier_id(run) if step else None,
                resume="allow",
                name=run.name,
                save_dir=run,
                project=options.project,
                group=options.group,
                tags=to_container(options.tags),
                mode=options.mode,
                config=config_to_save(config),
            )
        )
    return loggers


def picture_caption(drawn: Iterable[tuple[str, Any]]) -> str:
    """A caption of the prompts and seeds of a picture, in reading order."""
    return " | ".join(f"{prompt} (seed {seed})" for prompt, seed in drawn)


def log_image(logger: Logger, key: str, image: torch.Tensor, step: int, caption: str) -> None:
    """Send an image (H, W, 3), uint8, to a logger that shows images."""
    if isinstance(logger, WandbLogger):
        logger.log_image(key, [Image.fromarray(image.numpy())], step=step, caption=[caption])
    elif isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image(key, image, step, dataformats="HWC")
        logger.experiment.add_text(f"{key}/caption", caption, step)


ENDS = ("value", "low", "high")


def log_table(logger: Logger, result: dict[str, Any], step: int) -> None:
    """Send the rates of the four sets with their intervals; of several concepts, of each too."""
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_text("evaluation", markdown_table(result), step)
    elif isinstance(logger, WandbLogger):
        parts = {result["concept"]: result, **result.get("concepts", {})}
        sides = [f"{side} {end}" for side in ("base", "unlearned") for end in ENDS]
        data = [
            [concept, name, metric, *(both[s][e] for s in both for e in ENDS), both["base"]["n"]]
            for concept, part in parts.items()
            for name, row in part["sets"].items()
            for metric, both in row.items()
        ]
        columns = ["concept", "set", "metric", *sides, "n"]
        logger.log_table("evaluation", columns, data, step=step)


def log_result(loggers: list[Logger], result: dict[str, Any], run: Path, step: int) -> None:
    """Send the evaluation to the loggers: rates, the table, and the picture before and after."""
    rates = {
        f"eval/{name}/{metric}": sides["unlearned"]["value"]
        for name, row in result["sets"].items()
        for metric, sides in row.items()
        if sides["unlearned"]["n"]
    }
    images = read_images(run)
    with contextlib.suppress(ValueError):  # nothing to score
        rates["eval/score"] = score(images)
        rates["eval/retention"] = column_rate(images, "retention").value
    drawn = [i for name in SETS for i in pictured_rows([i for i in images if i["set"] == name])]
    caption = f"base above unlearned: {picture_caption((i['prompt'], i['seed']) for i in drawn)}"
    with Image.open(run / "before_after.png") as picture:
        data = torch.frombuffer(bytearray(picture.convert("RGB").tobytes()), dtype=torch.uint8)
        image = data.view(picture.height, picture.width, 3)
    for logger in loggers:
        if not isinstance(logger, MetricsFile):
            if isinstance(logger, TensorBoardLogger):
                logger.log_hyperparams(logger.hparams, rates, step)  # the rates with the config
            else:
                logger.log_metrics(rates, step)
            log_image(logger, "images/before_after", image, step, caption)
            if rates:
                log_table(logger, result, step)
            logger.finalize("success")
