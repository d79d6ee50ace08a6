"""Time the drawing of evaluation images against a loop of single-prompt calls of the pipeline.

    python -m experiments.bench.drawing [--model emoji] [--precision 32-true] [--images 64]

Both draw the same images, each of its own generator, with the same sampler and autocast. Prints how
many times as fast the batches are and writes `results/drawing_NAME.json`.
"""

from __future__ import annotations

import argparse
import statistics

import torch
from diffusers import DiffusionPipeline
from torch import Tensor
from tqdm import tqdm

from experiments.bench.step import measure, ratio, write
from experiments.command import positive
from unlearn.concepts.prompts import evaluation_prompts
from unlearn.config.compose import compose
from unlearn.config.parse import parse_config
from unlearn.generation.sampling import Sampler, default_batch_size, generate, sampling_scheduler
from unlearn.models.pipeline import device_for


def one_by_one(pipe: DiffusionPipeline, prompts: list[str], sampler: Sampler) -> Tensor:
    """Images of the prompts, uint8 (N, 3, H, W), a call each; number i is the seed of the i-th."""
    pipe.scheduler = sampling_scheduler(pipe.scheduler, None)
    pipe.set_progress_bar_config(disable=True)
    bf16 = sampler.precision == "bf16-mixed"
    with torch.autocast(pipe.device.type, torch.bfloat16, enabled=bf16):
        images = [
            pipe(
                prompt, generator=torch.Generator().manual_seed(seed),
                num_inference_steps=sampler.num_inference_steps,
                guidance_scale=sampler.guidance_scale, output_type="pt",
            ).images
            for seed, prompt in enumerate(tqdm(prompts, desc="one by one", unit="image"))
        ]  # fmt: skip
    return (torch.cat(images).float().clamp(0, 1) * 255).round().byte().cpu()


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="emoji", choices=("emoji", "sd14", "sd21", "sdxl"))
    parser.add_argument("--precision", default="32-true", choices=("32-true", "bf16-mixed"))
    parser.add_argument("--images", type=positive, default=64)
    parser.add_argument("--rounds", type=positive, default=5)
    options = parser.parse_args()
    random = [] if options.model == "emoji" else ["model.random_weights=true"]
    chosen = [f"model={options.model}", f"trainer.precision={options.precision}"]
    config = parse_config(compose(["concept=panda", *chosen, *random]))
    pipe = config.base.load().to(device_for("auto"))
    probes = evaluation_prompts(config.concept)
    prompts = [probes[number % len(probes)].prompt for number in range(options.images)]
    sampler = config.sampler(config.prompt_sets.num_inference_steps)
    drawn: dict[str, Tensor] = {}
    calls = {
        "one by one": lambda: drawn.update(one=one_by_one(pipe, prompts, sampler)),
        "batches": lambda: drawn.update(
            batches=generate(pipe, prompts, range(len(prompts)), sampler)
        ),
    }
    seconds = measure(calls, options.rounds, 1)
    speed = ratio(seconds["one by one"], seconds["batches"])
    difference = (drawn["one"].float() - drawn["batches"].float()).abs().mean().item()
    for name, times in seconds.items():
        print(f"{name}: {options.images / statistics.median(times):.3g} images a second")
    print(f"batches of {default_batch_size(pipe)}: {speed:.2f} times as fast")
    print(f"mean difference of a pixel: {difference:.4f} of 255")
    report = {
        "model": options.model, "images": options.images, "rounds": options.rounds,
        "batch_size": default_batch_size(pipe),
        "num_inference_steps": sampler.num_inference_steps,
        "guidance_scale": sampler.guidance_scale, "precision": sampler.precision, "speed": speed,
        "seconds": {name: statistics.median(times) for name, times in seconds.items()},
        "mean_pixel_difference": difference,
    }  # fmt: skip
    write(f"drawing_{options.model}_{options.precision}", pipe.device, report)


if __name__ == "__main__":
    main()
