"""Methods on the random model, and batches for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, DiffusionPipeline, StableDiffusionPipeline
from torch import Tensor

from unlearn.methods.base import UnlearningModule
from unlearn.methods.doco import DoCo, DoCoOptions
from unlearn.methods.registry import build_method, options_of
from unlearn.models.noise_schedule import NoiseSchedule
from unlearn.models.pipeline import get_denoiser, load_pipeline
from unlearn.models.text_states import encode_prompts

SIZE = 3  # of a batch
PROMPTS = ["a panda", "a fox on a blue background"]
STEPS = 4  # of `sample`


def make_method(pipe: DiffusionPipeline, name: str, **options: object) -> UnlearningModule:
    """The method `name` with these of its options, the others at their defaults."""
    return build_method(pipe, name, options_of(name)(**options))


def make_doco(folder: Path, **options: object) -> DoCo:
    """DoCo with a narrow discriminator."""
    torch.manual_seed(1)
    pipe = load_pipeline(str(folder))
    options = {"discriminator_channels": 8, **options}
    return DoCo(pipe.unet, NoiseSchedule.from_scheduler(pipe.scheduler), DoCoOptions(**options))


def batch_of(pipe: Any, prompts: list[str], size: int = 8) -> dict[str, Tensor]:
    """One pair of the target and the relearn prompt, of latents with sides of `size`."""
    generator = torch.Generator().manual_seed(0)
    texts = encode_prompts(pipe, prompts)
    shape = (1, 2, get_denoiser(pipe).config.in_channels, size, size)
    return {
        "latents": torch.randn(shape, generator=generator),
        "noise": torch.randn(shape, generator=generator),
        "timesteps": torch.tensor([[700, 300]]),
        "states": texts[None],
        "teacher_states": texts[1:],
        "pair": torch.tensor([0]),
        "seed": torch.tensor([0]),
    }


def make_batch(seed: int = 0) -> dict[str, Tensor]:
    """A batch as `PairDataset` makes them, of random texts."""
    g = torch.Generator().manual_seed(seed)
    return {
        "latents": torch.randn(SIZE, 2, 4, 16, 16, generator=g),
        "noise": torch.randn(SIZE, 2, 4, 16, 16, generator=g),
        "timesteps": torch.randint(1000, (SIZE, 2), generator=g),
        "states": torch.randn(SIZE, 2, 32, 32, generator=g),
        "teacher_states": torch.randn(SIZE, 32, 32, generator=g),
    }


def sample(pipe: StableDiffusionPipeline, **options: object) -> Tensor:
    """The latents that a pipeline draws for `PROMPTS` with DDIM."""
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    noise = torch.randn(len(PROMPTS), 4, 16, 16, generator=torch.Generator().manual_seed(0))
    options = {"guidance_scale": 5.0, **options}
    return pipe(PROMPTS, latents=noise, num_inference_steps=STEPS, output_type="latent",
                **options).images  # fmt: skip
