"""`unlearn train`: build, fit, export, evaluate."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch
from diffusers import StableDiffusionPipeline
from lightning.pytorch.callbacks import Callback, TQDMProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DDPStrategy
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from unlearn.backbone import device_of, load_pipeline
from unlearn.cache import digest
from unlearn.concepts import Concept
from unlearn.config import base_name, base_of, check_config, precision_of, sampler_of
from unlearn.data import PairDataModule, check_lengths, make_training_data, with_phrases
from unlearn.evaluation.evaluate import evaluate, load_judge
from unlearn.export import load_unlearned, read_safetensors, save_unlearned
from unlearn.methods import build_method
from unlearn.prompts import all_prompts
from unlearn.sections import plain
from unlearn.several import run_of
from unlearn.tracking import ProgressPictures, build_loggers, log_result

DDP = {"ddp": "popen", "ddp_spawn": "spawn"}  # strategies, and how each starts its processes


def train(config: DictConfig) -> Path:
    """Run one unlearning job and return its run directory.

    Raises:
        ValueError: the concept, the model, the judge, or an option of the run is not valid.
    """
    concept = check_config(config)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    L.seed_everything(config.seed, verbose=False)
    pipe = load_pipeline(**base_of(config))
    earlier = patched(pipe, run_of(config.after)) if config.after else {}
    prompts = sorted(all_prompts(concept))
    for texts in with_phrases(prompts) if config.data.rescale else [prompts]:
        check_lengths(pipe.tokenizer, texts)
    load_judge(config, concept)  # refused now if it is missing, not after training
    num_timesteps = pipe.scheduler.config.num_train_timesteps
    method = build_method(pipe, **plain(config.method))

    run = Path(str(config.run_dir))
    run.mkdir(parents=True, exist_ok=True)
    resolved = OmegaConf.to_yaml(config, resolve=True)
    (run / "config.yaml").write_text(resolved, encoding="utf-8")
    loggers = build_loggers(config, run)
    try:
        pipe.to(device_of(config.trainer.accelerator))
        module = None
        if config.steps:  # drawn by the base model: before the method changes it
            data = make_training_data(
                pipe, concept, seed=config.seed, guidance=config.model.guidance,
                precision=precision_of(config), images_of=method.images_of, **config.data,
            )  # fmt: skip
            module = PairDataModule(
                data, config.steps, config.batch_size, config.seed, num_timesteps, method.accumulate
            )
        method.prepare(pipe, concept)
        metadata = {
            "base": base_name(config),
            "concept": concept.name,
            "method": config.method.name,
            "config_sha256": hashlib.sha256(resolved.encode()).hexdigest(),
        }
        if config.after:
            metadata["after_sha256"] = digest(run_of(config.after) / "unlearned.safetensors")
        if method.at_inference:
            metadata["at_inference"] = json.dumps(method.at_inference)
        callbacks = build_callbacks(config, pipe, concept, run, metadata, earlier)
        trainer = build_trainer(config, loggers, callbacks)
        if module:
            trainer.fit(method, module)
        if not trainer.is_global_zero:
            return run
        weights = {**earlier, **method.trained_weights}
        save_unlearned(weights, run / "unlearned.safetensors", metadata)
        (run / "hparams.yaml").unlink(missing_ok=True)  # Lightning's copy of config.yaml
        log_result(loggers, evaluate(config, run), run, config.steps)
    finally:
        if wandb := sys.modules.get("wandb"):
            wandb.finish()  # or the next job of a sweep would go on in this one's W&B run
    return run


def patched(pipe: StableDiffusionPipeline, run: Path) -> dict[str, Tensor]:
    """The weights of an earlier run, by their names in the UNet; the pipeline gets them.

    Raises:
        ValueError: they do not fit the pipeline.
    """
    path = run / "unlearned.safetensors"
    load_unlearned(pipe, path)
    return {name.removeprefix("unet."): w for name, w in read_safetensors(path)[0].items()}


def build_callbacks(
    config: DictConfig,
    pipe: StableDiffusionPipeline,
    concept: Concept,
    run: Path,
    metadata: dict[str, str],
    earlier: dict[str, Tensor],
) -> list[Callback]:
    """Checkpoints, a progress bar, and kept weights and pictures where the config wants them."""
    callbacks: list[Callback] = [
        Checkpoints(run / "checkpoints", config.checkpoint_every),
        TQDMProgressBar(refresh_rate=5),
    ]
    if config.keep_every:
        callbacks.append(KeptWeights(run, config.keep_every, metadata, earlier))
    if every := config.logger.images_every:
        sampler = sampler_of(config, config.evaluation.sampling_steps)
        callbacks.append(ProgressPictures(pipe, concept, run, every, **sampler))
    return callbacks


def build_trainer(
    config: DictConfig, loggers: list[Logger], callbacks: list[Callback]
) -> L.Trainer:
    """A trainer of one epoch, which is the whole run."""
    options = {**plain(config.trainer), "precision": precision_of(config)}
    if options["strategy"] in DDP:  # every rank has the same frozen weights: nothing to broadcast
        start = DDP[options["strategy"]]
        options["strategy"] = DDPStrategy(start_method=start, broadcast_buffers=False)
    return L.Trainer(
        **options,
        max_epochs=1,
        logger=loggers,
        callbacks=callbacks,
        enable_model_summary=False,
        enable_checkpointing=False,  # `Checkpoints` counts our steps, not the optimizers'
        use_distributed_sampler=False,
    )


class KeptWeights(Callback):
    """Every `every` steps, the weights as they are then: a run directory `steps/STEP` of their own.

    `unlearn evaluate RUN_DIR/steps/*` shows how forgetting and damage went on.

    Args:
        run: the run directory, whose config.yaml is copied.
        every: steps between them.
        metadata: see `save_unlearned`.
        earlier: the weights of the run that this one goes on from.
    """

    def __init__(
        self, run: Path, every: int, metadata: dict[str, str], earlier: dict[str, Tensor]
    ) -> None:
        self.run, self.every, self.metadata, self.earlier = run, every, metadata, earlier

    def on_train_batch_end(
        self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep, after the step that the interval ends with."""
        step, rest = divmod(batch_idx + 1, module.accumulate)
        if rest or step % self.every or not trainer.is_global_zero:
            return
        folder = self.run / "steps" / f"{step:06d}"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.run / "config.yaml", folder / "config.yaml")
        weights = {**self.earlier, **module.trained_weights}
        save_unlearned(weights, folder / "unlearned.safetensors", self.metadata)


class LostRankError(RuntimeError):
    """A process of a DDP run is gone."""


class Checkpoints(Callback):
    """Every `every` steps, and at the end, what was trained and its optimizers: `last.ckpt`.

    Written aside and renamed, so that the file is always whole. Where another process of a DDP run
    is gone, says so and where the checkpoint is.

    Args:
        folder: where `last.ckpt` lies.
        every: steps between checkpoints.
    """

    def __init__(self, folder: Path, every: int) -> None:
        self.path, self.every = folder / "last.ckpt", every

    def on_train_batch_end(
        self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save after the steps that the interval ends with."""
        step, rest = divmod(batch_idx + 1, module.accumulate)
        if not rest and step % self.every == 0:
            self.save(trainer)

    def on_train_end(self, trainer: L.Trainer, module: Any) -> None:
        """Save the last state."""
        self.save(trainer)

    def on_exception(self, trainer: L.Trainer, module: Any, exception: BaseException) -> None:
        """At once, since Lightning kills the remaining processes within seconds.

        Raises:
            LostRankError: another process of the run died or could not be reached.
        """
        lost = isinstance(exception, torch.distributed.DistError) or "gloo" in str(exception)
        if trainer.world_size > 1 and lost:
            reason = str(exception).strip().splitlines()[0]
            raise LostRankError(
                f"a process of this run died or could not be reached; its last checkpoint is "
                f"{self.path} ({reason})"
            ) from exception

    def save(self, trainer: L.Trainer) -> None:
        """Called on every rank; rank 0 writes."""
        partial = self.path.with_suffix(".partial")
        trainer.save_checkpoint(partial)
        if trainer.is_global_zero:
            os.replace(partial, self.path)
