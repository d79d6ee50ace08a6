"""Time a DoCo step against a plain implementation of the same step, side by side.

    python -m experiments.bench.step [--model emoji] [--precision 32-true] [--batch-size 8]

The step is the paper's (`method.surgery=gradient method.relearn_target=noise`). The plain one
keeps a second UNet as the teacher, runs the VAE and the text encoder on every batch, and walks the
joint graph once for each gradient. Each line below it changes one thing. All are timed in turn,
round by round, on the same batch. A Stable Diffusion model is the published architecture at its
full size, with random weights. In bf16 on a GPU, the plain step in fp32, with TF32 and without,
stands beside them.

Beside seconds stand each line's counted operations and the memory at its peak: weights, optimizer
states and all tensors of a step; what kernels take for themselves is not seen. Prints a table and
writes `results/NAME.json`.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from experiments.bench.ours import OurStep
from experiments.bench.plain import PlainFp32, PlainStep
from experiments.command import positive
from unlearn.config.compose import compose
from unlearn.config.parse import parse_config
from unlearn.methods.doco import DoCoOptions
from unlearn.methods.teacher_ahead import batches_at_once
from unlearn.models.cross_attention import cross_attention_layers
from unlearn.models.frozen_layers import store_in_bf16
from unlearn.models.pipeline import device_for, pipeline_networks
from unlearn.training.rehearsal import PeakMemory, wait_for_device
from unlearn.utils.units import GIB

RESULTS = Path(__file__).parent / "results"
WARM_UP = ", warm-up"


Step = PlainStep | OurStep


@torch.no_grad()
def make_batch(pipe: StableDiffusionPipeline, size: int) -> dict[str, Any]:
    """One batch, as pixels and tokens and as what the VAE and the text encoder make of them."""
    generator = torch.Generator().manual_seed(0)
    config = pipe.unet.config
    side = config.sample_size * 2 ** (len(pipe.vae.config.block_out_channels) - 1)
    shape = (size, 2, config.in_channels, config.sample_size, config.sample_size)
    pixels = torch.rand(2 * size, 3, side, side, generator=generator) * 2 - 1
    texts = ["a panda"] * size + ["a picture of a bear"] * size + ["a bear"] * size
    tokens = pipe.tokenizer(texts, padding="max_length", return_tensors="pt").input_ids
    batch = {
        "pixels": pixels,
        "tokens": tokens,
        "posterior_noise": torch.randn(2 * size, *shape[2:], generator=generator),
        "noise": torch.randn(shape, generator=generator),
        "timesteps": torch.randint(1000, (size, 2), generator=generator),
    }
    batch = {k: v.to(pipe.device) for k, v in batch.items()}
    posterior = pipe.vae.encode(batch["pixels"]).latent_dist
    latents = posterior.mean + posterior.std * batch["posterior_noise"]
    latents = latents * pipe.vae.config.scaling_factor
    states = pipe.text_encoder(batch["tokens"])[0]
    batch["latents"] = torch.stack([latents[:size], latents[size:]], dim=1)
    batch["states"] = torch.stack([states[:size], states[size : 2 * size]], dim=1)
    batch["teacher_states"] = states[2 * size :]
    return batch


def lines(pipe: StableDiffusionPipeline, batch: dict[str, Any]) -> dict[str, Step]:
    """The plain step, and what changes it, one thing a line."""
    size = len(batch["latents"])
    own = {key: batch[key] for key in ("latents", "noise", "timesteps", "states", "teacher_states")}
    ahead = batches_at_once(size, pipe.unet.config.sample_size)
    steps: dict[str, Step] = {
        "plain": PlainStep(pipe, batch),
        "+ cached moments and text states": PlainStep(pipe, batch, encode=False),
        "+ no inputs of frozen convolutions": PlainStep(pipe, batch, False, keep_inputs=False),
        "+ one backward pass, one network": OurStep(pipe, own),
    }
    if ahead > 1:
        steps["+ the teacher ahead, for several steps at once"] = OurStep(pipe, own, ahead)
    steps["+ activations computed twice (low_memory)"] = OurStep(
        pipe, own, gradient_checkpointing=True
    )
    if size > 1:
        steps["+ one pair at a time"] = OurStep(pipe, own, parts=size, gradient_checkpointing=True)
    return steps


class Need(NamedTuple):
    """Of a step: operations (a multiply-add is two), and bytes at the peak."""

    operations: int
    memory: int


def needed(step: Step, count: int) -> Need:
    """Counted over so many steps, of which the most memory and the mean of operations."""
    step()  # makes the optimizers' states
    with PeakMemory() as memory:
        for _ in range(count):
            step()
    with FlopCounterMode(display=False) as counter:  # which keeps tensors for itself
        for _ in range(count):
            step()
    return Need(counter.get_total_flops() // count, memory.peak + held(step))


def held(step: Step) -> int:
    """Bytes of a step's networks and optimizers."""
    tensors = [t for n in step.networks for t in (*n.parameters(), *n.buffers())]
    for optimizer in step.optimizers:
        tensors += [v for s in optimizer.state.values() for v in s.values() if v.ndim]
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def measure(calls: dict[str, Callable[[], Any]], rounds: int, count: int) -> dict[str, list[float]]:
    """Seconds of each call, means of `count` in a row, all timed in turn in every round.

    A round is thrown away.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in tqdm(range(rounds + 1), desc="rounds"):
        for name, call in calls.items():
            wait_for_device()
            start = time.perf_counter()
            for _ in range(count):
                call()
            wait_for_device()
            if number:
                seconds[name].append((time.perf_counter() - start) / count)
    return seconds


def matmul_peak(device: torch.device, dtype: torch.dtype, side: int = 4096) -> float:
    """Operations a second of a large matrix product, the best of five."""
    a, b = (torch.ones(side, side, device=device, dtype=dtype) for _ in range(2))
    best = min(measure({"matrix product": lambda: a @ b}, 5, 1)["matrix product"])
    return 2 * side**3 / best


def largest_difference(ours: list[Tensor], plain: list[Tensor]) -> float:
    """The largest ‖a - b‖/‖b‖ over the gradients of the first step."""
    return max(((a - b).norm() / b.norm()).item() for a, b in zip(ours, plain, strict=True))


def ratio(plain: list[float], times: list[float]) -> float:
    """How many times as fast as plain: the median over the rounds."""
    return statistics.median(p / t for p, t in zip(plain, times, strict=True))


def whole_run(
    seconds: dict[str, list[float]], name: str, steps: int, warmup_steps: int
) -> list[float]:
    """Return the seconds of a whole run in each round, from those of single steps."""
    return [
        warmup_steps * warmup_step + (steps - warmup_steps) * step
        for step, warmup_step in zip(seconds[name], seconds[name + WARM_UP], strict=True)
    ]


def bench(
    steps: dict[str, Step], rounds: int, count: int, run_steps: int, warmup_steps: int
) -> dict[str, Any]:
    """Return all that is measured of each line, "plain" first.

    Args:
        steps: see `lines`.
        rounds, count: see `measure`.
        run_steps: the steps of a whole run.
        warmup_steps: how many of them are the warm-up.
    """
    needs = {name: needed(step, count) for name, step in tqdm(steps.items(), desc="counting")}
    calls: dict[str, Callable[[], Any]] = {**steps}
    calls |= {name + WARM_UP: step.warmup_step for name, step in steps.items()}
    seconds = measure(calls, rounds, count)
    rows = {}
    for name, need in needs.items():
        rows[name] = {
            "seconds": statistics.median(seconds[name]),
            "speed": ratio(seconds["plain"], seconds[name]),
            "predicted_speed": needs["plain"].operations / need.operations,
            "warm_up_speed": ratio(seconds["plain" + WARM_UP], seconds[name + WARM_UP]),
            "run_speed": ratio(
                *(whole_run(seconds, n, run_steps, warmup_steps) for n in ("plain", name))
            ),
            "operations": need.operations,
            "memory": need.memory,
            "memory_share": need.memory / needs["plain"].memory,
        }
    return rows


def table(rows: dict[str, Any], peak: float) -> str:
    """In Markdown."""
    head = ("step", "seconds", "times as fast as plain", "predicted", "a whole run", "memory (GiB)",
            "of plain's", "of the matmul peak")  # fmt: skip
    text = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, row in rows.items():
        text.append(
            f"| {name} | {row['seconds']:.3g} | {row['speed']:.2f} | {row['predicted_speed']:.2f} "
            f"| {row['run_speed']:.2f} | {row['memory'] / GIB:.2f} | {row['memory_share']:.2f} "
            f"| {row['operations'] / row['seconds'] / peak:.0%} |"
        )
    return "\n".join(text)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="emoji", choices=("emoji", "sd14", "sd21"))
    parser.add_argument("--precision", default="32-true", choices=("32-true", "bf16-mixed"))
    parser.add_argument("--batch-size", type=positive, default=8)
    parser.add_argument("--rounds", type=positive, default=20)
    options = parser.parse_args()
    random = [] if options.model == "emoji" else ["model.random_weights=true"]
    config = parse_config(compose([f"model={options.model}", "concept=panda", *random]))
    pipe = config.base.load().to(device_for("auto"))
    bf16, device = options.precision == "bf16-mixed", pipe.device
    fp32 = config.base.load().to(device) if bf16 and device.type == "cuda" else None
    if bf16:
        kept = [f"{name}.weight" for name in cross_attention_layers(pipe.unet)]
        for network in pipeline_networks(pipe).values():
            store_in_bf16(network, kept if network is pipe.unet else [])
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        batch = make_batch(pipe, options.batch_size)
        steps = lines(pipe, batch)
        if fp32:
            steps["plain, in fp32"] = PlainFp32(fp32, batch, tf32=False)
            steps["plain, in fp32 with TF32"] = PlainFp32(fp32, batch, tf32=True)
        first = {name: step() for name, step in tqdm(steps.items(), desc="gradients")}
        differences = {k: largest_difference(g, first["plain"]) for k, g in first.items()}
        count = batches_at_once(options.batch_size, pipe.unet.config.sample_size)
        assert isinstance(config.options, DoCoOptions)  # the default method's
        rows = bench(steps, options.rounds, count, config.steps, config.options.warmup_steps)
    peak = matmul_peak(device, torch.bfloat16 if bf16 else torch.float32)
    print(table(rows, peak))
    print("largest relative difference of a gradient to plain's:")
    print("\n".join(f"  {name}: {value:.1e}" for name, value in differences.items()))
    report = {
        "model": options.model, "precision": options.precision, "batch_size": options.batch_size,
        "rounds": options.rounds, "matmul_peak": peak, "gradient_differences": differences,
        "steps": rows,
    }  # fmt: skip
    write(f"step_{options.model}_{options.precision}", device, report)


def write(name: str, device: torch.device, report: dict[str, Any]) -> None:
    """Write `results/NAME_DEVICE.json`, with what was measured on, and print its path."""
    on = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else processor(),
        "threads": torch.get_num_threads(), "torch": torch.__version__,
    }  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}_{device.type}.json"
    path.write_text(json.dumps(on | report, indent=2) + "\n", encoding="utf-8")
    print(path)


def processor() -> str:
    """The name of the CPU."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return (names or [platform.processor() or "cpu"])[0]


if __name__ == "__main__":
    main()
