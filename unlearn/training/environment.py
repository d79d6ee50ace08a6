"""Record what a run trains with: the versions of its packages, and the device."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version

import torch
from lightning.pytorch.utilities import rank_zero_only

from unlearn.config.run_config import ModelConfig
from unlearn.utils.atomic import write_text

PACKAGES = ("unlearn-diffusion", "torch", "lightning", "diffusers", "transformers")


@rank_zero_only
def write_environment(config: ModelConfig) -> None:
    """Write environment.json, which names neither the user nor any environment variable."""
    on_gpu = config.device == "cuda"
    facts = {
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "system": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name() if on_gpu else "CPU",
        "precision": config.precision,
    }
    write_text(config.folder / "environment.json", json.dumps(facts, indent=2) + "\n")
