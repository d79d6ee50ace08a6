"""Checkpoints that hold what a run resumes from, and little else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def checkpoint_state(step: int, **more: Any) -> dict[str, Any]:
    """The content of a checkpoint after so many steps."""
    empty = {"metrics": [], "optimizer_states": [], "loops": {}, "state_dict": {}, "epoch": 0}
    return {"step": step, "global_step": 2 * step, **empty, **more}


def write_checkpoint(path: Path, step: int, **more: Any) -> None:
    """Write a checkpoint's file."""
    torch.save(checkpoint_state(step, **more), path)
