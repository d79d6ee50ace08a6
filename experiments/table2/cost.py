"""GPU-hours of Table 2 on Stable Diffusion 1.4, from counted operations.

    python -m experiments.table2.cost [--tflops 125] [--tflops-fp32 25] [--devices 8] [--limit N]

What a network takes for one sample is counted (flops.py), forward and, for what each method trains,
backward; how often it runs follows from the plan's configurations. Left out, since they are far
under 1 %: discriminator, optimizers, CLIP, and the solves of closed forms; and images of the base
model that runs side by side draw at the same time, each its own.

How fast a GPU works them off is an assumption, not a measurement: see `TFLOPS` and `TFLOPS_FP32`.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import astuple
from functools import cache, reduce
from pathlib import Path
from typing import Any, NamedTuple

from experiments.command import positive
from experiments.table2.flops import networks, passes
from experiments.table2.run import jobs_of
from experiments.table2.sd14 import Call, config_of, read_plan
from unlearn.concepts.prompts import evaluation_prompts, relearn_prompts, training_pairs
from unlearn.config.compose import compose
from unlearn.config.run_config import RunConfig
from unlearn.data.training_data import SCALE_PHRASES
from unlearn.methods.registry import METHODS
from unlearn.models.random_weights import SD1

TFLOPS = 0.4 * 312  # sustained: 40 % of an A100's dense bf16 peak
TFLOPS_FP32 = 25.0  # sustained on an A100 with torch's defaults: convolutions in TF32, products not

BATCH = 32  # images a call of `generate`
BASE = "the base model's images, drawn once"


def training(config: RunConfig) -> float:
    """Operations of a run's steps."""
    forward, trained = METHODS[config.method].samples(config.options, config.plan)
    size = passes(config.method, getattr(config.options, "trained", None))
    return forward * size.forward + trained * size.trained


def image(calls: int, method: str | None = None) -> float:
    """Operations of one image with guidance: so many calls of the UNet, the VAE, the texts.

    Args:
        calls: of the UNet, each for the prompt and without it.
        method: what is installed: SLD asks for a third sample a call, SPM adds its membranes.
    """
    size = networks()
    unet = passes("spm").forward if method == "spm" else size.unet
    return calls * (3 if method == "sld" else 2) * unet + size.decode + 2 * size.text


def encoding(config: RunConfig) -> float:
    """Operations of the VAE's encoder and of the text encoder, on what a run trains on."""
    if not config.steps:
        return 0
    concept, data, size = config.trained, config.data, networks()
    rescale = data.rescale and concept.kind != "style"
    images = (1 + data.flip) * (data.images * (1 + rescale) + data.relearn_images)
    texts = len(training_pairs(concept)) * (2 + len(SCALE_PHRASES) * rescale)
    texts += len(relearn_prompts(concept)) if data.relearn_images else 0
    return images * size.encode + texts * size.text


class Cost(NamedTuple):
    """Operations of some runs: all that is in the runs' precision, and what is in fp32.

    Attributes:
        runs: how many.
        training: of their steps, and of the images and states that they train on.
        judging: to draw the four prompt sets.
        protocol: to draw the protocol's images, in fp32 as it was published.
    """

    runs: int = 0
    training: float = 0
    judging: float = 0
    protocol: float = 0

    def plus(self, other: Cost) -> Cost:
        """The sum."""
        return Cost._make(a + b for a, b in zip(self, other, strict=True))

    def hours(self, tflops: float, tflops_fp32: float) -> tuple[float, float]:
        """GPU-hours of training and of evaluation."""
        evaluation = self.judging / tflops + self.protocol / tflops_fp32
        return self.training / tflops / 3600e12, evaluation / 3600e12


class Evaluation(NamedTuple):
    """What a run is evaluated on: images of the four prompt sets and of its protocol.

    Attributes:
        judged: images of the four prompt sets, with what fills the last batch.
        steps: of their sampling, a call of the UNet each.
        protocol: its name.
        images: of the protocol.
        calls: of the UNet for each of those.
    """

    judged: int
    steps: int
    protocol: str
    images: int
    calls: int

    def cost(self, method: str | None = None) -> Cost:
        """To draw them with a run of the method; None: with the base model."""
        return Cost(
            judging=self.judged * image(self.steps, method),
            protocol=self.images * image(self.calls, method),
        )


@cache
def protocol_size(name: str, prompts: int) -> tuple[int, int]:
    """The images of a protocol with so many prompts a concept, and the UNet's calls for each."""
    evaluation = compose([f"evaluation={name}"], "evaluate").evaluation
    scheduler = SD1.build_scheduler()
    scheduler.set_timesteps(evaluation.num_inference_steps)
    images = len(evaluation.concepts) * prompts * evaluation.images_per_prompt
    return images, len(scheduler.timesteps)


def evaluation_of(config: RunConfig, plan: dict[str, Any], limit: int | None) -> Evaluation:
    """How a run of the plan is evaluated, with the first `limit` prompts of a protocol alone."""
    concept, settings = config.trained, config.prompt_sets
    protocol = plan["protocols"][concept.kind]
    prompts = min(protocol["prompts"], limit or protocol["prompts"])
    judged = padded(len(evaluation_prompts(concept)) * settings.images_per_prompt)
    size = protocol_size(protocol["name"], prompts)
    return Evaluation(judged, settings.num_inference_steps, protocol["name"], *size)


def padded(images: int) -> int:
    """With what fills the last batch of `generate`."""
    return BATCH * math.ceil(images / BATCH)


def drawn(config: RunConfig, evaluation: Evaluation) -> dict[tuple[Any, ...], Cost]:
    """The base model's images that a run needs, by what names them in the cache."""
    concept, data, cost = config.trained.name, config.data, evaluation.cost()
    images = {
        (concept, evaluation.steps): Cost(judging=cost.judging),
        (evaluation.protocol,): Cost(protocol=cost.protocol),
    }
    if config.steps:
        key = (concept, config.seed, METHODS[config.method].images_of, *astuple(data))
        number = padded(data.images) + padded(data.relearn_images)
        images[key] = Cost(training=number * image(data.num_inference_steps))
    return images


def costs(plan: dict[str, Any], limit: int | None = None) -> dict[str, Cost]:
    """The cost of each row by its label, and of the base model's images, each drawn once."""
    rows = {entry["label"]: Cost() for entry in plan["rows"].values()}
    base: dict[tuple[Any, ...], Cost] = {}
    for job in jobs_of(plan, "sd14", list(plan["rows"])):
        config = config_of(job, plan, Call(Path("runs"), [], limit))
        evaluation = evaluation_of(config, plan, limit)
        own = Cost(runs=1, training=training(config) + encoding(config))
        label = plan["rows"][job.row]["label"]
        rows[label] = rows[label].plus(own).plus(evaluation.cost(config.method))
        base |= drawn(config, evaluation)
    rows[BASE] = reduce(Cost.plus, base.values(), Cost())
    return {label: cost for label, cost in rows.items() if any(cost)}


def report(rows: dict[str, Cost], tflops: float, tflops_fp32: float, devices: int) -> str:
    """GPU-hours by row, in all, and over the devices, as a Markdown table."""
    lines = ["| row | runs | training | evaluation | GPU-hours |", "|---" * 5 + "|"]
    for label, cost in [*rows.items(), ("all", reduce(Cost.plus, rows.values(), Cost()))]:
        training, evaluation = cost.hours(tflops, tflops_fp32)
        numbers = " | ".join(
            f"{hours:.1f}" for hours in (training, evaluation, training + evaluation)
        )
        lines.append(f"| {label} | {cost.runs} | {numbers} |")
    wall = (training + evaluation) / devices
    return "\n".join(
        [
            *lines,
            "",
            f"On {devices} GPUs: {wall:.1f} hours, if each has the same share of the runs.",
            f"Assumed, not measured: {tflops:g} TFLOP/s in bf16, and {tflops_fp32:g} in fp32, in "
            "which the protocols draw.",
        ]
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tflops", type=float, default=TFLOPS, help="a GPU's, sustained in bf16")
    parser.add_argument("--tflops-fp32", type=float, default=TFLOPS_FP32, help="and in fp32")
    parser.add_argument("--devices", type=positive, default=1, help="GPUs")
    parser.add_argument(
        "--limit", type=positive, help="the first N targets, and N prompts a concept"
    )
    options = parser.parse_args()
    for key in ("tflops", "tflops_fp32"):
        if getattr(options, key) <= 0:
            parser.error(
                f"--{key.replace('_', '-')}={getattr(options, key)}: more than 0 is needed"
            )
    rows = costs(read_plan(options.limit), options.limit)
    print(report(rows, options.tflops, options.tflops_fp32, options.devices))


if __name__ == "__main__":
    main()
