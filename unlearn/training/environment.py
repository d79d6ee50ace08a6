"""What a run trains with: the versions of its packages, and the device."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig

from unlearn.config.base_model import resolve_precision
from unlearn.models.pipeline import device_for
from unlearn.utils.atomic import write_text

PACKAGES = ("unlearn-diffusion", "torch", "lightning", "diffusers", "transformers")


@rank_zero_only
def write_environment(config: DictConfig, run: Path) -> None:
    """Write environment.json: nothing of the user, and none of the environment variables."""
    on_gpu = device_for(config.trainer.accelerator) == "cuda"
    facts = {
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "system": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name() if on_gpu else "CPU",
        "precision": resolve_precision(config),
    }
    write_text(run / "environment.json", json.dumps(facts, indent=2) + "\n")
