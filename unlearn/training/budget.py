"""Estimate a run's memory and time before it begins, and compare them with what it took."""

from __future__ import annotations

import json
import resource
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import psutil
import torch
from diffusers import DiffusionPipeline
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only

from unlearn.concepts.prompts import evaluation_prompts
from unlearn.config.run_config import RunConfig
from unlearn.generation.sampling import default_batch_size, image_side
from unlearn.methods.base import UnlearningModule
from unlearn.models.pipeline import get_denoiser, pipeline_networks
from unlearn.training.rehearsal import NetworkPasses, measure_call_cost
from unlearn.utils.atomic import write_text
from unlearn.utils.units import GIB, format_duration


class Estimate(NamedTuple):
    """The memory and the time that a run takes.

    Attributes:
        memory: bytes at the peak: on a CPU the process's, on a GPU its tensors'.
        steps: seconds of the training steps.
        images: seconds to draw the images to train on, if none is cached.
        evaluation: seconds to draw the evaluation's images of both models, if none is cached.
    """

    memory: int
    steps: float
    images: float
    evaluation: float


def estimate_run(
    config: RunConfig,
    pipe: DiffusionPipeline,
    method: UnlearningModule,
    left: int,
) -> Estimate:
    """Estimate what a run will take, from a rehearsal of a few seconds.

    The estimate leaves out what is small: the time of the discriminator and the optimizers, the
    text encoder, and the judge.

    Args:
        config: the run's configuration.
        pipe: the pipeline on its device.
        method: the method, on the pipeline's denoising network.
        left: the number of steps to make.

    Raises:
        ValueError: the device has less memory than the run needs.
    """
    passes = NetworkPasses(pipe, config.precision)
    held, batch = memory_held(pipe.device), config.sampling_batch_size or default_batch_size(pipe)
    # a resumed run has drawn its images, so sampling_batch_size, which must stay, needs no check
    if 0 < left < config.steps:
        batch = 1
    drawn = partial(check_memory, pipe.device, "draw images", "a lower sampling_batch_size")
    forward = measure_call_cost(passes.forward, 2 * batch, drawn)
    decode = measure_call_cost(passes.decode, batch, drawn)
    memory, steps = max(forward.memory(2 * batch), decode.memory(batch)), 0.0
    if left:
        memory = max(memory, measure_call_cost(passes.encode, batch, drawn).memory(batch))
        training, seconds = estimate_training(config, passes, pipe, method, forward.seconds)
        memory, steps = max(memory, training), seconds * left / config.steps
    trained_on, judged = check_image_memory(config, pipe, left)
    image, shown = (
        2 * part.num_inference_steps * forward.seconds + decode.seconds
        for part in (config.data, config.prompt_sets)
    )
    return Estimate(held + memory, steps, trained_on * image, judged * shown)


def estimate_training(
    config: RunConfig,
    passes: NetworkPasses,
    pipe: DiffusionPipeline,
    method: UnlearningModule,
    forward: float,
) -> tuple[int, float]:
    """Return the bytes that training adds to those held now, and the seconds of all its steps.

    Args:
        config: the run's configuration.
        passes: the rehearsal's passes.
        pipe: the pipeline on its device.
        method: the method, on the pipeline's denoising network.
        forward: the seconds of one sample without a gradient.

    Raises:
        ValueError: the device has less memory.
    """
    samples = method.samples_at_once(config.options, config.plan)
    states = 2 * sum(w.nbytes for w in method.weights)  # AdamW's two moments
    states -= offloaded_bytes(config, pipe)
    less = "experiment=low_memory, or batch_size lower and method.accumulate_grad_batches as "
    check = partial(check_memory, pipe.device, "train", f"{less}many times higher")
    trained = measure_call_cost(
        lambda n: passes.trained(n, method), samples, lambda needed: check(needed + states)
    )
    alone, with_gradient = method.samples(config.options, config.plan)
    return trained.memory(samples) + states, alone * forward + with_gradient * trained.seconds


def check_image_memory(config: RunConfig, pipe: DiffusionPipeline, left: int) -> tuple[int, int]:
    """Refuse more images than memory holds at once; return how many are trained on and judged.

    Raises:
        ValueError: the images do not fit.
    """
    data, settings = config.data, config.prompt_sets
    trained_on = (data.images + data.relearn_images) * bool(config.steps)
    prompts = sum(len(evaluation_prompts(part)) for part in config.trained.members)
    judged = 2 * settings.images_per_prompt * prompts  # of both models
    cpu, each = torch.device("cpu"), image_bytes(pipe)
    work = "hold the images to train on"
    check_memory(cpu, work, "a lower data.images", trained_on * each * bool(left))
    way_out = "a lower evaluation.images_per_prompt"
    check_memory(cpu, "hold the evaluation's images", way_out, judged * each)
    return trained_on, judged


def image_bytes(pipe: DiffusionPipeline) -> int:
    """Return the bytes of one image of the pipeline, uint8."""
    return 3 * image_side(pipe) ** 2


def offloaded_bytes(config: RunConfig, pipe: DiffusionPipeline) -> int:
    """Return the bytes of the networks that `fit` moves from a GPU to the CPU during training."""
    if pipe.device.type == "cpu" or config.log_images_every:
        return 0
    parts = [part for part in pipeline_networks(pipe).values() if part is not get_denoiser(pipe)]
    return sum(weight.nbytes for part in parts for weight in part.parameters())


def memory_held(device: torch.device) -> int:
    """Return the bytes that the process holds now, or on a GPU its tensors."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    return int(psutil.Process().memory_info().rss)


def peak_memory(device: torch.device) -> int:
    """Return the most bytes that the process held so far, or on a GPU its tensors."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def check_memory(device: torch.device, work: str, way_out: str, needed: int) -> None:
    """Refuse work that the device has too little memory for.

    Args:
        device: the device.
        work: what needs the memory, for the message.
        way_out: what the user can change, for the message.
        needed: bytes.

    Raises:
        ValueError: says how much is needed and free, and the way out.
    """
    if device.type == "cuda":
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        free = torch.cuda.mem_get_info(device)[0] + reserved
    else:
        free = psutil.virtual_memory().available
    if needed > free:
        raise ValueError(
            f"too little memory on {device} to {work}: about {needed / GIB:.1f} GiB are needed, "
            f"{free / GIB:.1f} are free; take {way_out}"
        )


class Budget(Callback):
    """A callback that measures the training steps, and compares them with the estimate.

    budget.json has both the estimate and the measured values.

    Args:
        estimated: see `estimate_run`.
        run: the run directory.
        count: the number of steps to make; a resumed run has fewer than the configuration says.
    """

    def __init__(self, estimated: Estimate, run: Path, count: int) -> None:
        self.estimated, self.run, self.count = estimated, run, count

    @rank_zero_only
    def announce(self) -> None:
        """Print the estimate."""
        memory, steps, images, evaluation = self.estimated
        drawn, stepped = format_duration(images), format_duration(steps)
        train = f"{drawn} for images to train on, {stepped} for the steps, "
        print(
            f"estimate: {memory / GIB:.1f} GiB of memory; {train if steps else ''}"
            f"{format_duration(evaluation)} for the evaluation's images (cached ones take no time)"
        )

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        """Begin to measure the time."""
        self.start = time.monotonic()

    def on_train_end(self, trainer: L.Trainer, module: Any) -> None:
        """Print and write the measured time and memory."""
        if not trainer.is_global_zero:
            return
        seconds, memory = time.monotonic() - self.start, peak_memory(module.device)
        written = {
            "estimated": self.estimated._asdict(), "measured": {"memory": memory, "steps": seconds},
            "count": self.count,
        }  # fmt: skip
        write_text(self.run / "budget.json", json.dumps(written, indent=2) + "\n")
        print(
            f"the steps took {format_duration(seconds)} "
            f"(estimated {format_duration(self.estimated.steps)}), the run "
            f"{memory / GIB:.1f} GiB of memory so far ({self.estimated.memory / GIB:.1f})"
        )
