"""Set what a diffusion model predicts, where its scheduler does not say so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers import DDIMScheduler, DiffusionPipeline
from diffusers.loaders.single_file_utils import load_single_file_checkpoint
from safetensors import safe_open

from unlearn.models.noise_schedule import FLOW_SCHEDULERS, check_scheduler

V_MARK, ZERO_SNR_MARK = "v_pred", "ztsnr"  # names of empty tensors in a single file
EDM_MARK = "edm_"  # how the names of tensors begin that mark another noise schedule
METADATA_KEY = "modelspec.prediction_type"  # of the metadata of a single file


def stated_prediction(pipe: DiffusionPipeline) -> str | None:
    """Return what the pipeline's scheduler says that the model predicts; None for a flow."""
    return (
        None
        if type(pipe.scheduler).__name__ in FLOW_SCHEDULERS
        else str(pipe.scheduler.config.prediction_type)
    )


def set_prediction_type(
    pipe: DiffusionPipeline, prediction_type: str, zero_snr: bool = False
) -> None:
    """Give the pipeline a scheduler of another prediction type.

    Args:
        pipe: the pipeline, whose scheduler is replaced.
        prediction_type: "epsilon" or "v_prediction".
        zero_snr: whether the last timestep is noise alone. Sampling then begins there.

    Raises:
        ValueError: the pipeline is a flow, or its schedule does not go with that prediction.

    Source: Lin et al. 2024 (arXiv 2305.08891), sections 3.1 and 3.3 (`zero_snr`).
    """
    own = pipe.scheduler
    if type(own).__name__ in FLOW_SCHEDULERS:
        raise ValueError(
            f"model.prediction_type={prediction_type!r}: the base model is a flow, which has "
            "no other prediction; null is needed"
        )
    changes: dict[str, Any] = {"prediction_type": prediction_type}
    kind = type(own)
    if zero_snr:
        changes |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        kind = kind if "rescale_betas_zero_snr" in own.config else DDIMScheduler
    scheduler = kind.from_config(own.config, **changes)
    try:
        check_scheduler(kind.__name__, scheduler.config)
    except ValueError as error:
        raise ValueError(f"model.prediction_type={prediction_type!r}: {error}") from error
    pipe.register_modules(scheduler=scheduler)


def set_marked_prediction(pipe: DiffusionPipeline, path: Path, where: str) -> None:
    """Give a pipeline of a single file the scheduler that marks in the file ask for.

    The marks are empty tensors, `v_pred` and `ztsnr`, or `modelspec.prediction_type` of the
    metadata.

    Args:
        pipe: the pipeline, whose scheduler is replaced.
        path: the single file.
        where: what the message begins with.

    Raises:
        ValueError: the marks are those of a noise schedule that is not known.
    """
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            names, metadata = set(file.keys()), file.metadata() or {}
    else:
        names, metadata = set(load_single_file_checkpoint(str(path))), {}
    if edm := sorted(name for name in names if name.startswith(EDM_MARK)):
        raise ValueError(
            f"{where}: its tensor {edm[0]!r} marks noise as of EDM, whose schedule is not known"
        )
    stated = metadata.get(METADATA_KEY, "").lower()
    if V_MARK in names or ZERO_SNR_MARK in names or stated in ("v", "v_prediction"):
        set_prediction_type(pipe, "v_prediction", zero_snr=ZERO_SNR_MARK in names)
