"""The wheel holds the configs, and its console script runs from another folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_wheel_runs_from_another_folder(
    random_model: Path, random_judge: Path, tmp_path: Path
) -> None:
    pip = [sys.executable, "-m", "pip", "-q"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", tmp_path, ROOT], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    subprocess.run([*pip, "install", "--no-deps", "--target", site, wheel], check=True)
    command = [
        sys.executable, "-m", "unlearn.cli.main", "train", "concept=rabbit",
        f"model.pretrained={random_model}", f"evaluation.judge={random_judge}",
        "steps=2", "method.warmup_steps=1", "batch_size=2", "data.images=4",
        "data.relearn_images=2",
        "data.num_inference_steps=2",
        "evaluation.images_per_prompt=1",
        "evaluation.num_inference_steps=2", "trainer.accelerator=cpu",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(site)}
    subprocess.run(command, cwd=elsewhere, env=environment, check=True)
    assert (elsewhere / "runs" / "rabbit-doco-0" / "unlearned.safetensors").exists()
