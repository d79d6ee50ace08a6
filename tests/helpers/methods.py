"""Methods on small models, and batches to train them on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from unlearn.methods.doco import DoCo, DoCoOptions
from unlearn.methods.registry import build_method, options_of
from unlearn.models.noise_schedule import NoiseSchedule
from unlearn.models.pipeline import load_pipeline

B = 3


def make_doco(folder: Path, **options: Any) -> DoCo:
    torch.manual_seed(1)
    pipe = load_pipeline(str(folder))
    options = {"discriminator_channels": 8, **options}
    return DoCo(pipe.unet, NoiseSchedule.of(pipe.scheduler), DoCoOptions(**options))


def make_batch(seed: int = 0) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {
        "latents": torch.randn(B, 2, 4, 16, 16, generator=g),
        "noise": torch.randn(B, 2, 4, 16, 16, generator=g),
        "timesteps": torch.randint(1000, (B, 2), generator=g),
        "states": torch.randn(B, 2, 32, 32, generator=g),
        "teacher_states": torch.randn(B, 32, 32, generator=g),
    }


def make_method(pipe: DiffusionPipeline, name: str, **options: Any) -> Any:
    """The method on the pipeline, with these options and the defaults of the others."""
    return build_method(pipe, name, options_of(name)(**options))
