"""Show how a run goes on, and keep its weights and pictures, by callbacks."""

from __future__ import annotations

import copy
import shutil
import time
from pathlib import Path
from typing import Any

import lightning as L
from diffusers import DiffusionPipeline
from lightning.pytorch.callbacks import Callback, TQDMProgressBar
from PIL import Image
from torch import Tensor

from unlearn.concepts.concept import Concept
from unlearn.concepts.prompts import SET_NAMES, evaluation_prompts
from unlearn.generation.sampling import Sampler, generate
from unlearn.training.budget import peak_memory
from unlearn.training.loggers import log_images, picture_caption
from unlearn.training.metrics_file import MetricsFile
from unlearn.utils.atomic import atomic_path
from unlearn.utils.units import GIB
from unlearn.weights.delta import save_unlearned

PICTURE_COLUMNS = 4  # prompts of each set in a picture


def picture_prompts(concept: Concept) -> list[str]:
    """Return `PICTURE_COLUMNS` prompts of each of the four sets that has any, evenly spaced.

    A set with fewer prompts repeats them.
    """
    prompts = []
    for name in SET_NAMES:
        chosen = list(dict.fromkeys(p.prompt for p in evaluation_prompts(concept) if p.set == name))
        count = min(len(chosen), PICTURE_COLUMNS)
        spaced = [chosen[i * len(chosen) // count] for i in range(count)]
        prompts += (spaced * PICTURE_COLUMNS)[:PICTURE_COLUMNS]
    return prompts


class StepsBar(TQDMProgressBar):
    """A progress bar of the run's one epoch: steps, time left and losses."""

    def on_train_epoch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Begin the bar, under the name of what goes on in place of an epoch's number."""
        super().on_train_epoch_start(trainer)
        self.train_progress_bar.set_description("training")

    def get_metrics(self, *arguments: Any) -> dict[str, Any]:
        """Return the losses, without the number that a logger gave the run."""
        metrics: dict[str, Any] = super().get_metrics(*arguments)
        metrics.pop("v_num", None)
        return metrics


class StepCost(Callback):
    """A callback that sends the time and the memory of a step to the dashboards.

    metrics.csv has neither, so that one seed gives the same file again.
    """

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        """Begin to measure."""
        self.since, self.batches = time.monotonic(), 0

    def on_train_batch_end(
        self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Send the mean time of the steps since the last call, and the peak memory so far."""
        self.batches += 1
        step, rest = divmod(batch_idx + 1, module.accumulate_grad_batches)
        if rest or step % trainer.log_every_n_steps:  # type: ignore[attr-defined]
            return
        steps = self.batches / module.accumulate_grad_batches
        cost = {
            "step/seconds": (time.monotonic() - self.since) / steps,
            "step/memory_gib": peak_memory(module.device) / GIB,
        }
        self.since, self.batches = time.monotonic(), 0
        for logger in trainer.loggers:
            if not isinstance(logger, MetricsFile):
                logger.log_metrics(cost, step - 1)


class ProgressPictures(L.Callback):
    """A callback that draws a picture of the four prompt sets every `every` steps.

    The picture has a row for each set that has prompts. The prompts and the noise are always the
    same. Pictures are written to `images/` in the run directory, and sent to the loggers that show
    images.

    Args:
        pipe: the pipeline whose denoising network is being trained.
        concept: the concept whose prompts are drawn.
        run: the run directory.
        every: steps between pictures.
        sampler: draws the images.
    """

    def __init__(
        self, pipe: DiffusionPipeline, concept: Concept, run: Path, every: int, sampler: Sampler
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
        """Draw the picture after every `every`-th step."""
        step, rest = divmod(batch_idx + 1, module.accumulate_grad_batches)
        if rest or step % self.every or not trainer.is_global_zero:
            return
        seeds = range(len(self.prompts))
        images = generate(self.pipe, self.prompts, seeds, self.sampler, description="picture")
        grid = images.unflatten(0, (-1, PICTURE_COLUMNS)).permute(0, 3, 1, 4, 2)
        array = grid.flatten(2, 3).flatten(0, 1).contiguous()
        self.folder.mkdir(exist_ok=True)
        with atomic_path(self.folder / f"step_{step:06d}.png") as partial:
            Image.fromarray(array.numpy()).save(partial, format="PNG")
        captions = [picture_caption(p, s) for p, s in zip(self.prompts, seeds, strict=True)]
        for logger in trainer.loggers:
            log_images(logger, "images/unlearned", [*images.permute(0, 2, 3, 1)], captions, step)


class KeptWeights(Callback):
    """A callback that keeps the weights every `every` steps, in a run directory of their own.

    That directory is `steps/STEP`. `unlearn evaluate RUN_DIR/steps/*` shows how forgetting and
    damage went on.

    Args:
        run: the run directory, whose config.yaml is copied.
        every: steps between kept weights.
        metadata: see `save_unlearned`.
        earlier: the weights of the run that this one starts from.
    """

    def __init__(
        self, run: Path, every: int, metadata: dict[str, str], earlier: dict[str, Tensor]
    ) -> None:
        self.run, self.every, self.metadata, self.earlier = run, every, metadata, earlier

    def on_train_batch_end(
        self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the weights after every `every`-th step."""
        step, rest = divmod(batch_idx + 1, module.accumulate_grad_batches)
        if rest or step % self.every or not trainer.is_global_zero:
            return
        folder = self.run / "steps" / f"{step:06d}"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.run / "config.yaml", folder / "config.yaml")
        weights = {**self.earlier, **module.trained_weights}
        save_unlearned(weights, folder / "unlearned.safetensors", self.metadata, module.part)
