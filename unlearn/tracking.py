"""Loggers, and pictures of what the model draws while it unlearns."""

from __future__ import annotations

import contextlib
import copy
import csv
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from diffusers import DiffusionPipeline
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig
from PIL import Image

from unlearn.concepts import Concept
from unlearn.evaluation.evaluate import table
from unlearn.evaluation.pictures import pictured
from unlearn.evaluation.score import column_rate, read_images, score
from unlearn.files import whole
from unlearn.generate import generate
from unlearn.prompts import SETS, evaluation_probes
from unlearn.sections import lasting, plain

COLUMNS = 4  # prompts of each set in a picture


class MetricsFile(Logger):
    """metrics.csv: a row whenever metrics are logged, its columns in alphabetical order.

    Attributes:
        rows: all of them, which a checkpoint keeps.
    """

    name = version = ""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, float]] = []
        self.columns: list[str] = []

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """They are in config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add a row."""
        row = {**metrics, "step": step or 0}
        self.rows.append(row)
        if not row.keys() <= {*self.columns}:
            self.restore(self.rows)
            return
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns).writerow(row)

    @rank_zero_only
    def restore(self, rows: list[dict[str, float]]) -> None:
        """Write the file anew: these are all its rows."""
        self.rows, self.columns = rows, sorted({key for row in rows for key in row})
        if not rows:
            self.path.unlink(missing_ok=True)
            return
        with (
            whole(self.path) as partial,
            partial.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(rows)


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
        board.log_hyperparams(lasting(config))
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
                tags=plain(options.tags),
                mode=options.mode,
                config=lasting(config),
            )
        )
    return loggers


def picture_prompts(concept: Concept) -> list[str]:
    """`COLUMNS` prompts of each of the four sets that has any, evenly spaced, in the sets' order.

    A set of fewer begins again.
    """
    prompts = []
    for name in SETS:
        chosen = list(dict.fromkeys(p.prompt for p in evaluation_probes(concept) if p.set == name))
        count = min(len(chosen), COLUMNS)
        spaced = [chosen[i * len(chosen) // count] for i in range(count)]
        prompts += (spaced * COLUMNS)[:COLUMNS]
    return prompts


class ProgressPictures(L.Callback):
    """Every `every` steps, a picture of the four prompt sets as the model draws them then.

    One row a set that has prompts, always the same prompts and noise; written to `images/` in the
    run directory and sent to the loggers that show images.

    Args:
        pipe: the pipeline whose UNet is being trained.
        concept: gives the prompts.
        run: the run directory.
        every: steps between pictures.
        sampler: steps and guidance.
    """

    def __init__(
        self, pipe: DiffusionPipeline, concept: Concept, run: Path, every: int, **sampler: Any
    ) -> None:
        self.pipe = copy.copy(pipe)  # shares the networks, but keeps a scheduler of its own
        self.prompts, self.every, self.sampler = picture_prompts(concept), every, sampler
        self.folder = run / "images"

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Draw, after the step that the interval ends with."""
        step, rest = divmod(batch_idx + 1, module.accumulate)
        if rest or step % self.every or not trainer.is_global_zero:
            return
        seeds = range(len(self.prompts))
        images = generate(self.pipe, self.prompts, seeds, description="picture", **self.sampler)
        grid = images.unflatten(0, (-1, COLUMNS)).permute(0, 3, 1, 4, 2)
        array = grid.flatten(2, 3).flatten(0, 1).contiguous()
        self.folder.mkdir(exist_ok=True)
        with whole(self.folder / f"step_{step:06d}.png") as partial:
            Image.fromarray(array.numpy()).save(partial, format="PNG")
        caption = captioned(zip(self.prompts, seeds, strict=True))
        for logger in trainer.loggers:
            log_image(logger, "images/unlearned", array, step, caption)


def captioned(drawn: Iterable[tuple[str, Any]]) -> str:
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
        logger.experiment.add_text("evaluation", table(result), step)
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
    drawn = [i for name in SETS for i in pictured([i for i in images if i["set"] == name])]
    caption = f"base above unlearned: {captioned((i['prompt'], i['seed']) for i in drawn)}"
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
