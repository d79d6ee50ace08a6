"""Name a run's base model, sampler and precision."""

from __future__ import annotations

from typing import Any

import torch
from omegaconf import DictConfig

from unlearn.config.schema import PRECISIONS


def resolve_precision(config: DictConfig) -> str:
    """Lightning's precision; "auto" is bf16 where the machine has it natively, else fp32.

    Raises:
        ValueError: another precision; fp16 with the reason.
    """
    precision = str(config.trainer.precision)
    if "16" in precision and "bf16" not in precision:
        raise ValueError(
            f"trainer.precision={precision!r}: the gradients of unlearning and relearning are "
            "combined by hand, where fp16's loss scaling cannot reach; allowed are "
            f"{list(PRECISIONS)}"
        )
    if precision not in PRECISIONS:
        raise ValueError(f"trainer.precision={precision!r}: allowed are {list(PRECISIONS)}")
    if precision != "auto":
        return precision
    if config.trainer.accelerator != "cpu" and torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.cpu._is_avx512_bf16_supported()
    return "bf16-mixed" if native else "32-true"


def base_model_options(config: DictConfig) -> dict[str, Any]:
    """A run's base model: arguments of `load_pipeline`."""
    keys = ("pretrained", "random_weights", "width", "image_size", "config")
    return {key: config.model[key] for key in keys if key in config.model}


def base_model_name(config: DictConfig) -> str:
    """The base model's name; one of random weights is not to be taken for the model itself."""
    name = str(config.model.pretrained)
    return f"random:{name}" if base_model_options(config).get("random_weights") else name


def sampler_options(config: DictConfig, steps: int) -> dict[str, Any]:
    """How a run draws images with so many steps: arguments of `generate`."""
    guidance_scale = float(config.model.guidance_scale)
    sampler = {
        "num_inference_steps": steps,
        "guidance_scale": guidance_scale,
        "precision": resolve_precision(config),
    }
    return {**sampler, "batch_size": config.get("sampling_batch_size")}
