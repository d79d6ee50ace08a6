"""Load a diffusers pipeline and find its networks."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DiffusionPipeline, SD3Transformer2DModel, UNet2DConditionModel
from torch import nn

from unlearn.models.loading import load_stored_pipeline
from unlearn.models.prediction import set_prediction_type, stated_prediction
from unlearn.models.random_weights import random_pipeline

DENOISERS: dict[str, Any] = {"unet": UNet2DConditionModel, "transformer": SD3Transformer2DModel}
NETWORK_NAMES = (  # of a pipeline, where it has them
    *DENOISERS, "vae", "text_encoder", "text_encoder_2", "text_encoder_3"
)  # fmt: skip


def load_pipeline(
    pretrained: str,
    *,
    random_weights: bool = False,
    width: float = 1.0,
    image_size: int | None = None,
    config: str | None = None,
    variant: str | None = None,
    prediction_type: str | None = None,
    vae: str | None = None,
) -> DiffusionPipeline:
    """Load the pipeline at `pretrained`, frozen and in fp32.

    Args:
        pretrained: "emoji", a diffusers folder, a single file or a hub id.
        random_weights: whether to build the architecture alone, with seeded random weights.
        width, image_size: the size of an architecture with random weights (see `random_pipeline`).
        config, variant, vae: what else is stored where (see `load_stored_pipeline`).
        prediction_type: "epsilon" or "v_prediction"; None: as the model says.

    Raises:
        ValueError: `load_stored_pipeline` or `random_pipeline` refuses the arguments. Or a stored
            model is asked for another size than its own, or random weights for a file. Or the model
            has no such prediction type.
    """
    if random_weights:
        for key, value in {"config": config, "variant": variant, "vae": vae}.items():
            if value is not None:
                raise ValueError(f"model.{key}={value!r}: model.random_weights=true reads no file")
    if random_weights:
        pipe = random_pipeline(pretrained, width, image_size)
    elif width != 1 or image_size is not None:
        raise ValueError(
            f"model.width={width}, model.image_size={image_size}: only a model of random weights "
            "has another size than its own (model.random_weights=true)"
        )
    else:
        pipe = load_stored_pipeline(pretrained, config, variant, vae)
    if prediction_type is not None and prediction_type != stated_prediction(pipe):
        set_prediction_type(pipe, prediction_type)
    for network in pipeline_networks(pipe).values():
        network.float().eval().requires_grad_(False)
    return pipe


def pipeline_networks(pipe: DiffusionPipeline) -> dict[str, nn.Module]:
    """Return all networks of the pipeline, by name."""
    return {name: part for name in NETWORK_NAMES if (part := getattr(pipe, name, None)) is not None}


def get_denoiser(pipe: DiffusionPipeline) -> Any:
    """Return the network that denoises, the one that trains: a UNet or a transformer."""
    return next(getattr(pipe, name) for name in DENOISERS if hasattr(pipe, name))


def denoiser_name(network: nn.Module) -> str:
    """Return the name that pipelines have for a network that denoises: "unet" or "transformer"."""
    return next(name for name, kind in DENOISERS.items() if isinstance(network, kind))


def device_for(accelerator: str) -> str:
    """Return the device that trains, draws and judges: the one that Lightning's Trainer takes.

    "auto" takes the GPU that there is: CUDA's, or else Apple's (MPS).

    Args:
        accelerator: "auto", "cpu", "gpu", "cuda" or "mps". One that is not there becomes "cpu";
            a run has then been refused by the Trainer.
    """
    available: dict[str, Any] = {
        "cuda": torch.cuda.is_available,
        "mps": torch.backends.mps.is_available,
    }
    for device, is_available in available.items():
        if accelerator in ("auto", "gpu", device) and is_available():
            return device
    return "cpu"
