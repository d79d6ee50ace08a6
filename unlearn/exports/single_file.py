"""A whole pipeline as one file, in the original Stable Diffusion's naming."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor, nn

from unlearn.exports.original_names import (
    clip_weights,
    open_clip_weights,
    unet_weights,
    vae_weights,
)
from unlearn.models.prediction import METADATA_KEY, V_MARK, ZERO_SNR_MARK
from unlearn.utils.atomic import atomic_path

UNETS: dict[str, dict[str, Any]] = {  # what makes a UNet Stable Diffusion's, by its pipeline
    "StableDiffusionPipeline": {
        "layers_per_block": 2,
        "transformer_layers_per_block": 1,
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
    },
    "StableDiffusionXLPipeline": {
        "layers_per_block": 2,
        "transformer_layers_per_block": [1, 2, 10],
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "down_block_types": ["DownBlock2D", *["CrossAttnDownBlock2D"] * 2],
    },
}


def check_original(pipe: DiffusionPipeline) -> None:
    """Refuse a pipeline that is none of Stable Diffusion 1, 2 and XL.

    Raises:
        ValueError: the original naming has no names for the pipeline's weights.
    """
    kind, config = type(pipe).__name__, dict(getattr(pipe, "unet", pipe).config)
    own = {key: config.get(key) for key in UNETS["StableDiffusionPipeline"]}
    lists = {k: list(v) if isinstance(v, list | tuple) else v for k, v in own.items()}
    if UNETS.get(kind) != lists or len(pipe.vae.config.block_out_channels) != 4:
        raise ValueError(
            f"format='single_file': holds Stable Diffusion 1, 2 or XL, and this run's base model "
            f"is another {kind}; format=folder holds any"
        )


def write_single_file(pipe: DiffusionPipeline, path: Path, metadata: Mapping[str, str]) -> None:
    """Write the pipeline's weights as one safetensors file, atomically.

    A model of v-prediction gets the marks that programs know it by.

    Args:
        pipe: the pipeline.
        path: the file.
        metadata: what the file says of itself, beside its prediction type.

    Raises:
        ValueError: see `check_original`.
    """
    check_original(pipe)
    weights = unet_weights(pipe.unet.state_dict(), pipe.unet.config.layers_per_block)
    weights |= vae_weights(pipe.vae.state_dict(), len(pipe.vae.config.block_out_channels))
    if hasattr(pipe, "text_encoder_2"):
        weights |= clip_weights(parameters(pipe.text_encoder), "conditioner.embedders.0.")
        second = parameters(pipe.text_encoder_2)
        weights |= open_clip_weights(second, "conditioner.embedders.1.model.")
    elif pipe.text_encoder.config.hidden_act == "gelu":  # OpenCLIP, of Stable Diffusion 2
        weights |= open_clip_weights(parameters(pipe.text_encoder), "cond_stage_model.model.")
    else:
        weights |= clip_weights(parameters(pipe.text_encoder), "cond_stage_model.")
    scheduler = pipe.scheduler.config
    v_prediction = scheduler.prediction_type == "v_prediction"
    if v_prediction:
        weights[V_MARK] = torch.zeros(0)
        if scheduler.get("rescale_betas_zero_snr"):
            weights[ZERO_SNR_MARK] = torch.zeros(0)
    stated = {**metadata, METADATA_KEY: "v" if v_prediction else "epsilon"}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as partial:
        save_file({n: w.contiguous().cpu() for n, w in weights.items()}, partial, stated)


def parameters(network: nn.Module) -> dict[str, Tensor]:
    """Return the parameters of a network by name, without its buffers."""
    return {name: weight.detach() for name, weight in network.named_parameters()}
