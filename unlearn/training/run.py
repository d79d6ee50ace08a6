"""`unlearn train`: build, fit, export, evaluate."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from diffusers import DiffusionPipeline
from lightning.pytorch.callbacks import Callback, TQDMProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig
from torch import Tensor

from unlearn.concepts.concept import Concept
from unlearn.concepts.prompts import all_prompts
from unlearn.config.base_model import (
    base_model_name,
    base_model_options,
    resolve_precision,
    sampler_options,
)
from unlearn.config.parse import check_config
from unlearn.config.saved import earlier_run_dir
from unlearn.config.sections import to_container
from unlearn.config.trainer import claim_device
from unlearn.data.datamodule import PairDataModule
from unlearn.data.training_data import make_training_data, with_phrases
from unlearn.evaluation.evaluate import evaluate, load_judge
from unlearn.generation.image_cache import pipeline_fingerprint
from unlearn.methods.base import UnlearningModule
from unlearn.methods.registry import build_method
from unlearn.models.frozen_layers import store_in_bf16
from unlearn.models.pipeline import device_for, load_pipeline, networks_of
from unlearn.models.text_states import check_known, check_lengths
from unlearn.training.budget import Budget, estimate
from unlearn.training.callbacks import KeptWeights, ProgressPictures
from unlearn.training.checkpoints import Checkpoints, WholeCheckpoints, step_of
from unlearn.training.environment import write_environment
from unlearn.training.loggers import build_loggers, log_result
from unlearn.training.run_dir import ERROR_FILE, Progress, open_run_dir, read_progress
from unlearn.training.signals import SignalHandler
from unlearn.utils.errors import Interrupted
from unlearn.utils.hashing import file_sha256
from unlearn.utils.run_errors import as_run_errors
from unlearn.weights.delta import load_unlearned, read_safetensors, save_unlearned

DDP = {"ddp": "popen", "ddp_spawn": "spawn"}  # strategies, and how each starts its processes


def train(config: DictConfig) -> Path:
    """Run one unlearning job and return its run directory.

    Where an earlier call of the same job was interrupted, goes on; where it finished, that is said.

    Raises:
        ValueError: the concept, the model, the judge, or an option of the run is not valid, or
            the run directory holds another run.
        RunError: a fault that the run cannot go on with.
        Interrupted: SIGTERM or Ctrl-C; all that the same call goes on from is written.
    """
    concept = check_config(config)
    run = Path(str(config.run_dir))
    progress = read_progress(config, run)
    with contextlib.suppress(OSError):  # a run_dir that is none is refused by `open_run_dir`
        (run / ERROR_FILE).unlink(missing_ok=True)
    if progress.finished:
        print(f"{run}: finished before, with this configuration; resume=false begins anew")
        return run
    claim_device(config)
    if torch.cuda.is_available():  # an earlier job of this process had a peak of its own
        torch.cuda.reset_peak_memory_stats()
    L.seed_everything(config.seed, verbose=False)
    load_judge(config, concept)  # refused now if it is missing, not after training
    pipe = load_pipeline(**base_model_options(config))
    earlier = load_earlier_weights(pipe, earlier_run_dir(config.after)) if config.after else {}
    with SignalHandler() as stop, as_run_errors(run / "unlearned.safetensors"):
        pipe.to(device_for(config.trainer.accelerator))
        drawer = pipeline_fingerprint(pipe)
        method = prepare_method(config, concept, pipe)
        left = 0 if progress.trained else config.steps - progress.step
        budget = Budget(estimate(config, concept, pipe, method, left), run, left)
        held = open_run_dir(config, run, progress)
        try:
            loggers = build_loggers(config, run, progress.step)
            budget.announce()
            job = RunContext(config, concept, run, pipe, drawer, method, earlier)
            if not progress.trained:
                fit(job, progress, loggers, [budget], stop)
            if rank_zero_only.rank:  # rank 0's process goes on from here
                return run
            del pipe, method, job  # the evaluation loads its own
            log_result(loggers, evaluate(config, run), run, config.steps)
        except Interrupted as end:
            print(f"unlearn: stopped by {end.name}; {resume_hint(run)}", file=sys.stderr)
            raise
        finally:
            if wandb := sys.modules.get("wandb"):  # else a sweep's next job would go on in its run
                with contextlib.suppress(Exception):  # W&B may be what went wrong
                    wandb.finish(exit_code=int(sys.exc_info()[0] is not None))
            if held is not None:  # of rank 0
                os.close(held)
    return run


def prepare_method(
    config: DictConfig, concept: Concept, pipe: DiffusionPipeline
) -> UnlearningModule:
    """The method, on the pipeline's network, whose tokenizer takes every prompt.

    Raises:
        ValueError: it does not, or the method does not take such a pipeline.
    """
    prompts = sorted(all_prompts(concept))
    if not config.model.random_weights:  # whose tokenizer is only a stand-in
        check_known(pipe.tokenizer, prompts)
    for texts in with_phrases(prompts) if config.data.rescale else [prompts]:
        check_lengths(pipe.tokenizer, texts)
    method = build_method(pipe, **to_container(config.method))
    if resolve_precision(config) == "bf16-mixed":
        store_in_bf16(method.network, method.trained_weights)
    if config.gradient_checkpointing:
        method.network.enable_gradient_checkpointing()
    return method


def resume_hint(run: Path) -> str:
    """What an interrupted run left, for the one who reads why it ended."""
    if (run / "unlearned.safetensors").exists():
        return "the same command goes on with the evaluation"
    path = run / "checkpoints" / "last.ckpt"
    if path.exists():
        return f"the same command goes on after step {step_of(path)} ({path})"
    return "the same command goes on; the images drawn so far are kept"


class RunContext(NamedTuple):
    """What one run trains.

    Attributes:
        config: the checked config.
        concept: what is forgotten.
        run: the run directory.
        pipe: the base model, whose denoising network is the method's.
        drawer: the `pipeline_fingerprint` of the base model as it was loaded.
        method: what trains.
        earlier: the weights of the run that this one goes on from, by their names in the UNet.
    """

    config: DictConfig
    concept: Concept
    run: Path
    pipe: DiffusionPipeline
    drawer: str
    method: UnlearningModule
    earlier: dict[str, Tensor]


def fit(
    job: RunContext,
    progress: Progress,
    loggers: list[Logger],
    callbacks: list[Callback],
    stop: SignalHandler,
) -> None:
    """Train, and write the weights."""
    config, concept, run, pipe, drawer, method, earlier = job
    write_environment(config, run)
    num_timesteps = pipe.scheduler.config.num_train_timesteps
    module = None
    if config.steps:  # drawn by the base model: before the method changes it
        options = dict(config.data)
        sampler = sampler_options(config, options.pop("num_inference_steps"))
        data = make_training_data(
            pipe, concept, seed=config.seed, images_of=method.images_of, **options, **sampler,
            cached=drawer,
        )  # fmt: skip
        module = PairDataModule(
            data,
            config.steps,
            config.batch_size,
            config.seed,
            num_timesteps,
            method.accumulate_grad_batches,
        )
    method.prepare(pipe, concept)
    if not config.logger.images_every:  # nothing is drawn in training
        for part in networks_of(pipe).values():
            if part is not method.network:
                part.cpu()
        if torch.cuda.is_available():  # for the ranks that start on this device
            torch.cuda.empty_cache()
    metadata = {} if rank_zero_only.rank else weights_metadata(job)
    own = build_callbacks(job, metadata)
    own.append(Checkpoints(run, config.checkpoint_every, loggers[0], stop))
    trainer = build_trainer(config, run, loggers, [*callbacks, *own])
    if module:
        if progress.step:
            rank_zero_only(print)(f"{run}: goes on after step {progress.step} of {config.steps}")
        trainer.fit(method, module, ckpt_path=progress.checkpoint, weights_only=True)
    if trainer.is_global_zero:
        weights = {**earlier, **method.trained_weights}
        save_unlearned(weights, run / "unlearned.safetensors", metadata, method.part)


def weights_metadata(job: RunContext) -> dict[str, str]:
    """What the weights' file says of where they come from."""
    config = job.config
    metadata = {
        "base": base_model_name(config),
        "concept": job.concept.name,
        "method": config.method.name,
        "config_sha256": file_sha256(job.run / "config.yaml"),
    }
    if config.after:
        metadata["after_sha256"] = file_sha256(
            earlier_run_dir(config.after) / "unlearned.safetensors"
        )
    if job.method.at_inference:
        metadata["at_inference"] = json.dumps(job.method.at_inference)
    return metadata


def load_earlier_weights(pipe: DiffusionPipeline, run: Path) -> dict[str, Tensor]:
    """The weights of an earlier run, by their names in the network; the pipeline gets them.

    Raises:
        ValueError: they do not fit the pipeline.
    """
    path = run / "unlearned.safetensors"
    load_unlearned(pipe, path)
    return {name.partition(".")[2]: w for name, w in read_safetensors(path)[0].items()}


def build_callbacks(job: RunContext, metadata: dict[str, str]) -> list[Callback]:
    """A progress bar, and kept weights and pictures where the config wants them."""
    config, run = job.config, job.run
    callbacks: list[Callback] = [TQDMProgressBar(refresh_rate=5)]
    if config.keep_every:
        callbacks.append(KeptWeights(run, config.keep_every, metadata, job.earlier))
    if every := config.logger.images_every:
        sampler = sampler_options(config, config.evaluation.num_inference_steps)
        callbacks.append(ProgressPictures(job.pipe, job.concept, run, every, **sampler))
    return callbacks


def build_trainer(
    config: DictConfig, run: Path, loggers: list[Logger], callbacks: list[Callback]
) -> L.Trainer:
    """A trainer of one epoch, which is the whole run."""
    options = {**to_container(config.trainer), "precision": resolve_precision(config)}
    if options["strategy"] in DDP:  # every rank has the same frozen weights: nothing to broadcast
        start = DDP[options["strategy"]]
        options["strategy"] = DDPStrategy(start_method=start, broadcast_buffers=False)
    plugins: list[Any] = [WholeCheckpoints()]
    if SLURMEnvironment.detect():  # whose own requeueing would miss our checkpoints
        plugins.append(SLURMEnvironment(auto_requeue=False))
    return L.Trainer(
        **options,
        plugins=plugins,
        default_root_dir=run,
        max_epochs=1,
        logger=loggers,
        callbacks=callbacks,
        enable_model_summary=False,
        enable_checkpointing=False,  # `Checkpoints` counts our steps, not the optimizers'
        use_distributed_sampler=False,
    )
