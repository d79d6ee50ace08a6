"""The unlearned weights as a delta: changed weights under their diffusers names."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

if TYPE_CHECKING:  # not at run time: it would slow `unlearn --help`
    from diffusers import StableDiffusionPipeline


def save_unlearned(weights: Mapping[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write the changed UNet weights atomically; `metadata` names base, concept and method.

    Equal weights and metadata give equal bytes: safetensors writes metadata in a random order, so
    the header is written again with sorted keys.
    """
    partial = path.with_suffix(".partial")
    tensors = {f"unet.{k}": v.detach().contiguous().cpu() for k, v in weights.items()}
    raw = save(tensors, metadata=metadata)
    end = 8 + int.from_bytes(raw[:8], "little")
    header = json.dumps(json.loads(raw[8:end]), sort_keys=True).encode()
    header += b" " * (-len(header) % 8)  # the format's alignment
    partial.write_bytes(len(header).to_bytes(8, "little") + header + raw[end:])
    os.replace(partial, path)


def load_unlearned(
    pipe: StableDiffusionPipeline, path: str | os.PathLike[str]
) -> StableDiffusionPipeline:
    """Patch a diffusers pipeline in place with unlearned weights, and return it.

    Raises:
        ValueError: the weights do not fit the pipeline, or are not finite; nothing is changed.
    """
    unet = dict(pipe.unet.named_parameters())
    with safe_open(path, framework="pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for name, tensor in weights.items():
        own = unet.get(name.removeprefix("unet."))
        if own is None:
            raise ValueError(f"{path}: {name} is not a weight of this pipeline's UNet")
        if own.shape != tensor.shape:
            shapes = f"{tuple(tensor.shape)}, the pipeline's is {tuple(own.shape)}"
            raise ValueError(f"{path}: {name} has shape {shapes}; made for another base model")
        if not tensor.isfinite().all():
            raise ValueError(f"{path}: {name} holds values that are not finite")
    with torch.no_grad():
        for name, tensor in weights.items():
            unet[name.removeprefix("unet.")].copy_(tensor)
    return pipe
