"""Load a VAE in place of a pipeline's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL

SUFFIX = ".safetensors"


def load_vae(vae: str, own: Any, config: str) -> AutoencoderKL:
    """Load another VAE, from safetensors alone.

    Args:
        vae: a folder or hub id of a VAE, a folder of a pipeline, or a single file.
        own: the VAE whose place it takes.
        config: the folder or hub id of the pipeline, whose configuration a single file takes.

    Raises:
        ValueError: the VAE cannot be loaded, is of another class, lacks a weight, or has other
            latents than `own`.
    """
    path, where = Path(vae), f"model.vae={vae!r}"
    if path.is_file() and path.suffix != SUFFIX:
        raise ValueError(f"{where}: a single file of a VAE ends in {SUFFIX}")
    try:
        loaded = load_file(vae, config) if path.is_file() else load_folder(vae)
    except MemoryError:
        raise
    except Exception as error:  # of any kind: a stranger may have written the files
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{where}: cannot be loaded: {reason}; a folder, a hub id or a {SUFFIX} file of an "
            "AutoencoderKL is needed"
        ) from error
    for name, weight in loaded.named_parameters():
        if weight.is_meta:
            raise ValueError(f"{where}: lacks the weight {name}")
    for key in ("latent_channels", "down_block_types"):
        there, here = loaded.config[key], own.config[key]
        if there != here and (key == "latent_channels" or len(there) != len(here)):
            raise ValueError(f"{where}: its {key} is {there}, the base model's VAE has {here}")
    return loaded


def load_file(vae: str, config: str) -> AutoencoderKL:
    """Return the VAE of a single file, with the configuration of a pipeline's VAE."""
    return AutoencoderKL.from_single_file(vae, config=config, subfolder="vae")


def load_folder(vae: str) -> AutoencoderKL:
    """Return the VAE of a folder or hub id.

    Raises:
        ValueError: the class is another one, or a weight is missing.
    """
    inner = "vae" if Path(vae, "model_index.json").exists() else ""
    kind = AutoencoderKL.load_config(vae, subfolder=inner).get("_class_name")
    if kind != AutoencoderKL.__name__:
        raise ValueError(f"it is a {kind}")
    options = {"use_safetensors": True, "low_cpu_mem_usage": False, "output_loading_info": True}
    loaded, info = AutoencoderKL.from_pretrained(vae, subfolder=inner, **options)
    if info["missing_keys"]:
        raise ValueError(f"it lacks the weight {min(info['missing_keys'])}")
    return loaded
