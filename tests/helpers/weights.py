"""Weights in each format that is read, and what loading them may change."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor, nn

from unlearn.models.pipeline import load_pipeline
from unlearn.weights.delta import save_unlearned
from unlearn.weights.importing import load_weights

KEYS_VALUES = ("attn2.to_k.weight", "attn2.to_v.weight")
TERMS = "down_blocks.1.attentions.0.transformer_blocks.0"
NAME = f"{TERMS}.attn2.to_k"
FITS = {f"{NAME}.weight": torch.ones(32, 32)}


def weights_of(pipe: StableDiffusionPipeline) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in pipe.unet.state_dict().items()}


def draw(pipe: StableDiffusionPipeline, prompt: str = "a panda") -> Tensor:
    pipe.set_progress_bar_config(disable=True)
    noise = torch.Generator().manual_seed(0)
    return pipe(prompt, num_inference_steps=2, output_type="pt", generator=noise).images


def changed(folder: Path, *endings: str) -> tuple[StableDiffusionPipeline, dict[str, Tensor]]:
    """A pipeline whose UNet's weights of those endings were set by hand, and those weights."""
    pipe = load_pipeline(str(folder))
    generator, weights = torch.Generator().manual_seed(1), {}
    for name, weight in pipe.unet.named_parameters():
        if name.endswith(endings):
            weight.data = weight + 0.3 * torch.randn(weight.shape, generator=generator)
            weights[name] = weight.data.clone()
    assert weights
    return pipe, weights


def state_of(pipe: StableDiffusionPipeline) -> dict[str, Tensor]:
    """A copy of all that loading may change."""
    state = {**weights_of(pipe), "words": torch.tensor(len(pipe.tokenizer))}
    return state | {f"text.{n}": w.clone() for n, w in pipe.text_encoder.state_dict().items()}


@cache
def base_of(folder: Path) -> tuple[StableDiffusionPipeline, dict[str, Tensor]]:
    """A pipeline that only refused files are loaded into, and its state."""
    pipe = load_pipeline(str(folder))
    return pipe, state_of(pipe)


def assert_refused(folder: Path, path: Path, message: str, *targets: str) -> None:
    """By the pipeline of `folder`, with that message; nothing of it has changed."""
    pipe, state = base_of(folder)
    with pytest.raises(ValueError, match=message):
        load_weights(pipe, path, list(targets))
    after = state_of(pipe)
    assert after.keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in after.items())


def as_run(weights: dict[str, Tensor], folder: Path) -> Path:
    save_unlearned(weights, folder / "unlearned.safetensors", {"method": "doco"})
    return folder


def as_doco(weights: dict[str, Tensor], folder: Path) -> Path:
    """The reference's file: parameters, so with gradients, of which a clone was taken."""
    path = folder / "delta.bin"
    torch.save({"unet": {n: nn.Parameter(w).clone() for n, w in weights.items()}}, path)
    return path


def as_custom_diffusion(weights: dict[str, Tensor], folder: Path) -> Path:
    """diffusers' file: attention processors, those without weights as empty dictionaries."""
    path = folder / "pytorch_custom_diffusion_weights.bin"
    content: dict[str, Any] = {f"{TERMS}.attn1.processor": {}}
    for name, weight in weights.items():
        parent, _, rest = name.partition(".to_")
        side, _, end = rest.partition(".")
        content[f"{parent}.processor.to_{side}_custom_diffusion.{end}"] = weight
    torch.save(content, path)
    return path


def as_esd(weights: dict[str, Tensor], folder: Path) -> Path:
    """ESD's file: names of the UNet's own parameters."""
    save_file(weights, folder / "esd-van_gogh.safetensors")
    return folder / "esd-van_gogh.safetensors"


def as_state_dict(weights: dict[str, Tensor], folder: Path) -> Path:
    torch.save(weights, folder / "unet.pt")
    return folder / "unet.pt"


class Malicious:
    """Unpickled, it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)
