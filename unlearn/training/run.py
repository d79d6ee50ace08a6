"""Make one run: build the method, train it, write its weights, and evaluate them."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from diffusers import DiffusionPipeline
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from unlearn.concepts.prompts import all_prompts
from unlearn.config.run_config import RunConfig
from unlearn.config.saved import WEIGHTS_FILE
from unlearn.data.datamodule import PairDataModule
from unlearn.data.training_data import make_training_data, with_scale_phrases
from unlearn.evaluation.evaluate import evaluate, load_judge
from unlearn.generation.image_cache import pipeline_fingerprint
from unlearn.methods.base import UnlearningModule
from unlearn.methods.registry import build_method
from unlearn.models.frozen_layers import store_in_bf16
from unlearn.models.pipeline import pipeline_networks
from unlearn.models.text_states import check_prompt_lengths, check_words_known
from unlearn.training.budget import Budget, estimate_run
from unlearn.training.callbacks import KeptWeights, ProgressPictures, StepCost, StepsBar
from unlearn.training.checkpoints import AtomicCheckpointIO, Checkpoints, checkpoint_step
from unlearn.training.device import claim_device, trainer_options
from unlearn.training.dry_run import describe_plan
from unlearn.training.environment import write_environment
from unlearn.training.loggers import build_callbacks, build_loggers, log_result
from unlearn.training.run_dir import ERROR_FILE, Progress, open_run_dir, read_progress
from unlearn.training.signals import SignalHandler
from unlearn.utils.errors import Interrupted
from unlearn.utils.hashing import file_sha256
from unlearn.utils.run_errors import as_run_errors
from unlearn.weights.delta import load_unlearned, read_safetensors, save_unlearned

DDP = {"ddp": "popen", "ddp_spawn": "spawn"}  # how each strategy starts its processes


def train(config: RunConfig) -> Path:
    """Train and evaluate one run, and return its run directory.

    A run that an earlier call left unfinished is resumed. For a finished run, say so and return.

    Raises:
        ValueError: the model, the judge or a prompt is not valid, or the run directory holds
            another run.
        RunError: a fault that the run cannot go on with.
        Interrupted: SIGTERM or Ctrl-C came; all that the same call resumes from is written.
    """
    run = config.folder
    progress = read_progress(config)
    if not progress.finished:
        claim_device(config)
    if config.dry_run:
        print(describe_plan(config, progress))
        return run
    with contextlib.suppress(OSError):  # `open_run_dir` refuses a run_dir that is no folder
        (run / ERROR_FILE).unlink(missing_ok=True)
    if progress.finished:
        print(f"{run}: finished before, with this configuration; resume=false begins anew")
        return run
    if torch.cuda.is_available():  # an earlier job of this process may have raised it
        torch.cuda.reset_peak_memory_stats()
    L.seed_everything(config.seed, verbose=False)
    load_judge(config, config.trained)  # fails before the training, not after it
    pipe = config.base.load()
    earlier = load_earlier_weights(pipe, config.after) if config.after else {}
    with SignalHandler() as signals, as_run_errors(config.weights):
        pipe.to(config.device)
        fingerprint = pipeline_fingerprint(pipe)
        method = prepare_method(config, pipe)
        left = 0 if progress.trained else config.steps - progress.step
        budget = Budget(estimate_run(config, pipe, method, left), run, left)
        held = open_run_dir(config, progress)
        try:
            loggers = build_loggers(config, progress.step)
            budget.announce()
            context = RunContext(config, pipe, fingerprint, method, earlier)
            if not progress.trained:
                fit(context, progress, loggers, [budget], signals)
            if rank_zero_only.rank:  # only rank 0 evaluates
                return run
            del pipe, method, context  # the evaluation loads its own
            log_result(loggers, evaluate(config), run, config.steps)
        except Interrupted as end:
            print(f"unlearn: stopped by {end.name}; {resume_hint(run)}", file=sys.stderr)
            raise
        finally:
            if wandb := sys.modules.get("wandb"):  # else a sweep's next job would go on in its run
                with contextlib.suppress(Exception):  # W&B may be what went wrong
                    wandb.finish(exit_code=int(sys.exc_info()[0] is not None))
            if held is not None:  # only rank 0 holds the lock
                os.close(held)
    return run


def prepare_method(config: RunConfig, pipe: DiffusionPipeline) -> UnlearningModule:
    """Check the run's prompts with the tokenizer, and return the method on the pipeline's network.

    Raises:
        ValueError: the tokenizer does not take a prompt, or the method does not take the pipeline.
    """
    prompts = sorted(all_prompts(config.trained))
    if not config.base.random_weights:  # a random model's tokenizer is only a stand-in
        check_words_known(pipe.tokenizer, prompts)
    for texts in with_scale_phrases(prompts) if config.data.rescale else [prompts]:
        check_prompt_lengths(pipe.tokenizer, texts)
    method = build_method(pipe, config.method, config.options)
    if config.precision == "bf16-mixed":
        store_in_bf16(method.network, method.trained_weights)
    if config.gradient_checkpointing:
        method.network.enable_gradient_checkpointing()
    return method


def resume_hint(run: Path) -> str:
    """Return a hint for the user on what the same command will resume from."""
    if (run / WEIGHTS_FILE).exists():
        return "the same command goes on with the evaluation"
    path = run / "checkpoints" / "last.ckpt"
    if path.exists():
        return f"the same command goes on after step {checkpoint_step(path)} ({path})"
    return "the same command goes on; the images drawn so far are kept"


class RunContext(NamedTuple):
    """The parts of a run that training needs.

    Attributes:
        config: the run's configuration.
        pipe: the base model, whose denoising network is the method's.
        base_fingerprint: the `pipeline_fingerprint` of the base model as it was loaded.
        method: the method that trains.
        earlier: the weights of the run that this one starts from, by their names in the denoising
            network.
    """

    config: RunConfig
    pipe: DiffusionPipeline
    base_fingerprint: str
    method: UnlearningModule
    earlier: dict[str, Tensor]


def fit(
    context: RunContext,
    progress: Progress,
    loggers: list[Logger],
    callbacks: list[Callback],
    signals: SignalHandler,
) -> None:
    """Make the training data, train, and write the weights."""
    config, pipe, base_fingerprint, method, earlier = context
    write_environment(config)
    module = None
    if config.steps:  # the base model draws the images, before the method changes the model
        data = make_training_data(
            pipe, config.trained, config.data, config.sampler(config.data.num_inference_steps),
            seed=config.seed, images_of=method.images_of, cached=base_fingerprint,
        )  # fmt: skip
        module = PairDataModule(
            data,
            config.steps,
            config.batch_size,
            config.seed,
            pipe.scheduler.config.num_train_timesteps,
            method.accumulate_grad_batches,
        )
    method.prepare(pipe, config.trained)
    if not config.log_images_every:  # nothing is drawn in training
        for part in pipeline_networks(pipe).values():
            if part is not method.network:
                part.cpu()
        if torch.cuda.is_available():  # frees it for ranks that share this device
            torch.cuda.empty_cache()
    metadata = {} if rank_zero_only.rank else weights_metadata(context)
    own = build_run_callbacks(context, metadata)
    own.append(Checkpoints(config.folder, config.checkpoint_every, loggers[0], signals))
    trainer = build_trainer(config, loggers, [*callbacks, *own])
    if module:
        if progress.step:
            begun = f"{config.folder}: goes on after step {progress.step} of {config.steps}"
            rank_zero_only(print)(begun)
        with warnings.catch_warnings():  # all but the trained weights is frozen, in eval mode
            warnings.filterwarnings("ignore", message=r".*module\(s\) in eval mode")
            trainer.fit(method, module, ckpt_path=progress.checkpoint, weights_only=True)
    if trainer.is_global_zero:
        weights = {**earlier, **method.trained_weights}
        save_unlearned(weights, config.weights, metadata, method.part)


def weights_metadata(context: RunContext) -> dict[str, str]:
    """Return the metadata of the weights' file: what the weights come from."""
    config = context.config
    metadata = {
        "base": config.base.name,
        "concept": config.trained.name,
        "method": config.method,
        "config_sha256": file_sha256(config.folder / "config.yaml"),
    }
    if config.after:
        metadata["after_sha256"] = file_sha256(config.after / WEIGHTS_FILE)
    if context.method.at_inference:
        metadata["at_inference"] = json.dumps(context.method.at_inference)
    return metadata


def load_earlier_weights(pipe: DiffusionPipeline, run: Path) -> dict[str, Tensor]:
    """Load the weights of an earlier run into the pipeline.

    Returns:
        The weights, by their names in the denoising network.

    Raises:
        ValueError: the weights do not fit the pipeline.
    """
    path = run / WEIGHTS_FILE
    load_unlearned(pipe, path)
    return {name.partition(".")[2]: w for name, w in read_safetensors(path)[0].items()}


def build_run_callbacks(context: RunContext, metadata: dict[str, str]) -> list[Callback]:
    """Return a progress bar, the callbacks that config keys ask for, and those of `callbacks`."""
    config = context.config
    callbacks: list[Callback] = [StepsBar(refresh_rate=5)]
    if config.loggers:
        callbacks.append(StepCost())
    if config.keep_every:
        callbacks.append(KeptWeights(config.folder, config.keep_every, metadata, context.earlier))
    if every := config.log_images_every:
        sampler = config.sampler(config.prompt_sets.num_inference_steps)
        pictures = ProgressPictures(context.pipe, config.trained, config.folder, every, sampler)
        callbacks.append(pictures)
    return [*callbacks, *build_callbacks(config)]


def build_trainer(config: RunConfig, loggers: list[Logger], callbacks: list[Callback]) -> L.Trainer:
    """Return a trainer of one epoch, which is the whole run."""
    options: dict[str, Any] = {**trainer_options(config), "precision": config.precision}
    if options["strategy"] in DDP:  # ranks load the same frozen weights: nothing to broadcast
        start = DDP[options["strategy"]]
        options["strategy"] = DDPStrategy(start_method=start, broadcast_buffers=False)
    plugins: list[Any] = [AtomicCheckpointIO()]
    if SLURMEnvironment.detect():  # Lightning's requeueing would miss these checkpoints
        plugins.append(SLURMEnvironment(auto_requeue=False))
    return L.Trainer(
        **options,
        plugins=plugins,
        default_root_dir=config.folder,
        max_epochs=1,
        logger=loggers,
        callbacks=callbacks,
        enable_model_summary=False,
        enable_checkpointing=False,  # Lightning's would count steps of each optimizer
        use_distributed_sampler=False,
    )
