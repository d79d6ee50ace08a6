"""Loggers, and pictures of what the model draws while it unlearns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
from diffusers import StableDiffusionPipeline
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from omegaconf import DictConfig
from PIL import Image

from unlearn.concepts import Concept
from unlearn.generate import generate
from unlearn.prompts import SETS, evaluation_probes
from unlearn.sections import plain

COLUMNS = 4  # prompts of each set in a picture


def build_loggers(config: DictConfig, run: Path) -> list[Logger]:
    """metrics.csv in the run directory, and the chosen logger.

    Raises:
        ValueError: the chosen logger's package is not installed.
    """
    loggers: list[Logger] = [CSVLogger(run, name="", version="")]
    options = config.logger
    try:
        if options.name == "tensorboard":
            loggers.append(
                TensorBoardLogger(run, name="", version="tensorboard", default_hp_metric=False)
            )
        elif options.name == "wandb":
            loggers.append(
                WandbLogger(
                    name=run.name,
                    save_dir=run,
                    project=options.project,
                    group=options.group,
                    mode=options.mode,
                    config=plain(config),
                )
            )
    except ModuleNotFoundError as error:
        raise ValueError(f"logger.name={options.name!r}: {error}") from error
    return loggers


def picture_prompts(concept: Concept) -> list[str]:
    """Up to `COLUMNS` prompts of each of the four sets, evenly spaced; rows of equal length."""
    prompts = []
    for name in SETS:
        chosen = list(dict.fromkeys(p.prompt for p in evaluation_probes(concept) if p.set == name))
        prompts += (chosen[:: max(1, len(chosen) // COLUMNS)] * COLUMNS)[:COLUMNS]
    return prompts


class ProgressPictures(L.Callback):
    """Every `every` steps, a picture of the four prompt sets as the model draws them then.

    One row a set, always the same prompts and noise; written to `images/` in the run directory
    and sent to the loggers that show images.

    Args:
        pipe: the pipeline whose UNet is being trained.
        concept: gives the prompts.
        run: the run directory.
        every: steps between pictures.
        sampler: steps and guidance.
    """

    def __init__(
        self, pipe: StableDiffusionPipeline, concept: Concept, run: Path, every: int, **sampler: Any
    ) -> None:
        self.pipe = StableDiffusionPipeline(
            **pipe.components, requires_safety_checker=False
        )  # shares the networks, but keeps a scheduler of its own
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
        images = generate(
            self.pipe, self.prompts, range(len(self.prompts)), description="picture", **self.sampler
        )
        grid = images.unflatten(0, (len(SETS), COLUMNS)).permute(0, 3, 1, 4, 2)
        array = grid.flatten(2, 3).flatten(0, 1).contiguous()
        self.folder.mkdir(exist_ok=True)
        Image.fromarray(array.numpy()).save(self.folder / f"step_{step:06d}.png")
        for logger in trainer.loggers:
            log_image(logger, "images/unlearned", array, step, " | ".join(self.prompts))


def log_image(logger: Logger, key: str, image: torch.Tensor, step: int, caption: str) -> None:
    """Send an image (H, W, 3), uint8, to a logger that shows images."""
    if isinstance(logger, WandbLogger):
        logger.log_image(key, [Image.fromarray(image.numpy())], step=step, caption=[caption])
    elif isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image(key, image, step, dataformats="HWC")


def log_result(loggers: list[Logger], result: dict[str, Any], run: Path, step: int) -> None:
    """Send the evaluation to the loggers: every rate, and the picture before and after."""
    rates = {
        f"eval/{name}/{metric}": sides["unlearned"]["value"]
        for name, row in result["sets"].items()
        for metric, sides in row.items()
        if sides["unlearned"]["n"]
    }
    with Image.open(run / "before_after.png") as picture:
        data = torch.frombuffer(bytearray(picture.convert("RGB").tobytes()), dtype=torch.uint8)
        image = data.view(picture.height, picture.width, 3)
    for logger in loggers:
        if not isinstance(logger, CSVLogger):
            logger.log_metrics(rates, step)
            log_image(logger, "images/before_after", image, step, "base above unlearned")
            logger.finalize("success")
