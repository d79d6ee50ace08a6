"""Time a DoCo step against a plain implementation of the same step, side by side.

    python -m experiments.bench.step [--pretrained emoji] [--batch-size 8] [--rounds 20]

The plain step follows the method's equations with what every implementation has: frozen weights
without gradient, fused attention, the same dtype. It keeps a second UNet as the teacher, runs the
VAE and the text encoder on every batch, and walks the joint graph once for each gradient. Each line
below it changes one thing; the last is the package's own step. All are timed in turn, round by
round, on the same batch. Prints a table and writes `results/NAME.json`.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor
from tqdm import tqdm

from unlearn.backbone import cross_attention_layers, load_pipeline
from unlearn.diffusion import add_noise, predict_x0
from unlearn.discriminator import PatchDiscriminator
from unlearn.losses import discriminator_loss, domain_correction_loss, relearn_loss
from unlearn.methods.ahead import TeacherAhead, together
from unlearn.methods.base import step_with
from unlearn.methods.doco import DoCo
from unlearn.surgery import clip_to_norm, project

RESULTS = Path(__file__).parent / "results"
Step = Callable[[], list[Tensor]]  # makes one step, returns g_u and g_r


class PlainStep:
    """DoCo's step with a second network, an encoder in the loop, and a backward pass a gradient.

    Args:
        pipe: the base pipeline.
        batch: see `make_batch`.
        encode: run the VAE and the text encoder on the batch, as against reading their outputs.
    """

    def __init__(
        self, pipe: StableDiffusionPipeline, batch: dict[str, Any], encode: bool = True
    ) -> None:
        self.pipe, self.batch, self.encode = pipe, batch, encode
        self.unet = copy.deepcopy(pipe.unet).requires_grad_(False)
        self.teacher = pipe.unet
        self.weights = [layer.weight for layer in cross_attention_layers(self.unet).values()]
        for weight in self.weights:
            weight.requires_grad_(True)
        torch.manual_seed(0)
        config = self.unet.config
        self.discriminator = PatchDiscriminator(config.in_channels, config.sample_size).to(
            pipe.device
        )
        self.optimizer = torch.optim.AdamW(self.weights, 1e-5, weight_decay=1e-2)
        self.critic = torch.optim.Adam(self.discriminator.parameters(), 1e-5, betas=(0.5, 0.999))
        self.alphas = pipe.scheduler.alphas_cumprod.to(pipe.device)

    def joined(self, key: str) -> Tensor:
        """Both halves of the batch, one after the other."""
        return torch.cat([self.batch[key][:, 0], self.batch[key][:, 1]])

    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        """Latents (2B, C, h, w), text states (2B, T, D) and the teacher's text states (B, T, D)."""
        if not self.encode:
            latents, states = self.joined("latents"), self.joined("states")
            return latents, states, self.batch["teacher_states"]
        with torch.no_grad():
            posterior = self.pipe.vae.encode(self.batch["pixels"]).latent_dist
            moments = posterior.mean, posterior.std
            latents = moments[0] + moments[1] * self.batch["posterior_noise"]
            states = self.pipe.text_encoder(self.batch["tokens"])[0]
        size = len(latents)
        return latents * self.pipe.vae.config.scaling_factor, states[:size], states[size:]

    def __call__(self) -> list[Tensor]:
        """One step."""
        latents, states, teacher_states = self.inputs()
        noise, timesteps = self.joined("noise"), self.joined("timesteps")
        half = len(latents) // 2
        kind = self.pipe.scheduler.config.prediction_type
        z_t = add_noise(latents, noise, timesteps, self.alphas)
        output = self.unet(z_t, timesteps, states).sample
        with torch.no_grad():
            anchor = self.teacher(z_t[:half], timesteps[:half], teacher_states).sample
        schedule = (z_t[:half], timesteps[:half], self.alphas, kind)
        real, fake = predict_x0(anchor, *schedule), predict_x0(output[:half], *schedule)
        unlearn = domain_correction_loss(self.discriminator(fake))
        relearn = relearn_loss(output[half:], noise[half:])
        g_u = list(torch.autograd.grad(unlearn, self.weights, retain_graph=True))
        g_r = list(torch.autograd.grad(relearn, self.weights))
        loss = discriminator_loss(self.discriminator(real), self.discriminator(fake.detach()))
        g_d = list(torch.autograd.grad(loss, list(self.discriminator.parameters())))
        clipped_u, clipped_r = clip_to_norm(g_u, 1.0)[0], clip_to_norm(g_r, 1.0)[0]
        step_with(self.optimizer, self.weights, project(clipped_u, clipped_r)[0])
        step_with(self.critic, list(self.discriminator.parameters()), g_d)
        return [*g_u, *g_r]


class OurStep:
    """The package's step, with the paper's choices, which the plain step has too.

    Args:
        pipe: the base pipeline.
        batch: see `make_batch`; every step's.
        count: batches that the teacher takes at once.
    """

    def __init__(
        self, pipe: StableDiffusionPipeline, batch: dict[str, Any], count: int = 1
    ) -> None:
        self.doco = DoCo(
            copy.deepcopy(pipe.unet), pipe.scheduler.alphas_cumprod,
            pipe.scheduler.config.prediction_type, lr=1e-5, discriminator_lr=1e-5,
        ).to(pipe.device)  # fmt: skip
        torch.manual_seed(0)  # the plain step's discriminator
        config = pipe.unet.config
        same = PatchDiscriminator(config.in_channels, config.sample_size)
        self.doco.discriminator.load_state_dict(same.state_dict())
        self.doco._trainer = SimpleNamespace(world_size=1)  # stands in for a Trainer
        self.optimizer, self.critic = self.doco.configure_optimizers()
        self.batches: Iterator[dict[str, Any]] = itertools.repeat(batch)
        if count > 1:
            teach = lambda batch, _: self.doco.teach(batch)  # noqa: E731
            ahead = TeacherAhead(self.batches, count, teach, lambda moved: moved)
            self.batches = iter(ahead)

    def __call__(self) -> list[Tensor]:
        """One step."""
        g_u, g_r, g_d, _ = self.doco.gradients(next(self.batches))
        mean = self.doco.mean_gradients([*g_u, *g_r, *g_d], last=True)
        count = len(g_u)
        self.doco.step(self.optimizer, mean[:count], mean[count : 2 * count])
        step_with(self.critic, list(self.doco.discriminator.parameters()), mean[2 * count :])
        return [*g_u, *g_r]


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


def synchronize() -> None:
    """Wait for the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def measure(steps: dict[str, Step], rounds: int, count: int) -> dict[str, list[float]]:
    """Seconds of each step, means of `count` in a row, all timed in turn in every round.

    Two rounds are thrown away.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in tqdm(range(rounds + 2), desc="rounds"):
        for name, step in steps.items():
            synchronize()
            start = time.perf_counter()
            for _ in range(count):
                step()
            synchronize()
            if number >= 2:
                seconds[name].append((time.perf_counter() - start) / count)
    return seconds


def largest_difference(ours: list[Tensor], plain: list[Tensor]) -> float:
    """The largest ‖a - b‖/‖b‖ over the gradients of the first step."""
    return max(((a - b).norm() / b.norm()).item() for a, b in zip(ours, plain, strict=True))


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pretrained", default="emoji", help="emoji or a diffusers folder")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    pipe = load_pipeline(options.pretrained)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipe.to(device)
    batch, count = make_batch(pipe, options.batch_size), together(options.batch_size)
    difference = largest_difference(OurStep(pipe, batch, count)(), PlainStep(pipe, batch)())
    steps = {
        "plain": PlainStep(pipe, batch),
        "+ cached moments and text states": PlainStep(pipe, batch, encode=False),
        "+ one backward pass, one network": OurStep(pipe, batch),
        "+ the teacher ahead, for several steps at once (ours)": OurStep(pipe, batch, count),
    }
    seconds = measure(steps, options.rounds, count)
    plain = seconds["plain"]
    rows = {}
    print("| step | ms (median) | times as fast as plain (median of rounds) |\n|---|---|---|")
    for name, times in seconds.items():
        ratio = statistics.median(p / t for p, t in zip(plain, times, strict=True))
        rows[name] = {"ms": 1000 * statistics.median(times), "ratio": ratio}
        print(f"| {name} | {rows[name]['ms']:.0f} | {ratio:.2f} |")
    print(f"largest relative difference of a gradient, ours to plain: {difference:.1e}")
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or "cpu"
    report = {
        "device": name, "threads": torch.get_num_threads(), "pretrained": options.pretrained,
        "batch_size": options.batch_size, "dtype": "float32", "torch": torch.__version__,
        "gradient_difference": difference, "steps": rows,
    }  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"step_{Path(options.pretrained).name}_{device}.json"
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(path)


if __name__ == "__main__":
    main()
