"""Every method on Stable Diffusion's architecture, small and untrained, from the console."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Pipeline, StableDiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file

from tests.helpers.console import unlearn
from unlearn.config.compose import compose
from unlearn.methods.registry import METHODS

pytestmark = pytest.mark.slow
SMALL = [
    "model=sd14", "model.random_weights=true", "model.width=0.125", "model.image_size=64",
    "batch_size=2", "data.images=4",
        "data.relearn_images=4", "data.num_inference_steps=2",
    "evaluation.num_inference_steps=2", "evaluation.judge=none", "trainer.accelerator=cpu",
    "run_dir=run",
]  # fmt: skip
FEW = {"warmup_steps": 1, "num_inference_steps": 2, "mask_batches": 1}


def train(method: str, folder: Path, *others: str) -> Path:
    """A run of three steps on Snoopy, whose anchor has two prompts."""
    (folder / "dogs.txt").write_text("a dog in the park\na photo of a dog\n")
    takes = compose([f"method={method}"]).method
    overrides = [f"method.{key}={value}" for key, value in FEW.items() if key in takes]
    if not METHODS[method].closed_form:
        overrides.append("steps=3")
    done = unlearn(
        "train", "concept=snoopy", *SMALL, f"method={method}", "anchor.prompts=dogs.txt",
        *overrides, *others, cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "run"


def test_a_run_with_random_weights_says_so_wherever_it_goes(tmp_path: Path) -> None:
    run = train("uce", tmp_path)
    with safe_open(run / "unlearned.safetensors", framework="pt") as file:
        assert file.metadata()["base"] == "random:CompVis/stable-diffusion-v1-4"
        assert len(file.keys()) == 32
    assert json.loads((run / "result.json").read_text())["method"] == "uce"
    for arguments in (["evaluate", "run"], ["sample", "run", "a dog"], ["export", "run"]):
        done = unlearn(*arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
    card = (run / "export" / "README.md").read_text()
    assert "# random:CompVis/stable-diffusion-v1-4, with snoopy unlearned" in card
    plain = StableDiffusionPipeline.from_pretrained(run / "export", use_safetensors=True)
    assert plain.unet.config.block_out_channels == [40, 80, 160, 160]


def test_a_flow_runs_and_loads_into_a_pipeline_of_plain_diffusers(tmp_path: Path) -> None:
    run = train("doco", tmp_path, "model=sd3", "model.width=0.05", "evaluation.images_per_prompt=1")
    for arguments in (["evaluate", "run"], ["sample", "run", "a dog"], ["export", "run"]):
        done = unlearn(*arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
    pipe = StableDiffusion3Pipeline.from_pretrained(
        run / "export", text_encoder_3=None, tokenizer_3=None
    )
    weights = load_file(run / "unlearned.safetensors")
    assert len(weights) == 48
    for name, weight in weights.items():
        assert torch.equal(
            pipe.transformer.get_parameter(name.removeprefix("transformer.")), weight
        )
    overrides = ["model=sd3", "method=spm", "run_dir=other"]
    refused = unlearn("train", "concept=snoopy", *SMALL, *overrides, cwd=tmp_path)
    assert refused.returncode != 0
    assert "method.name='spm': is bound to a UNet" in refused.stderr
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("method", [m for m in sorted(METHODS) if m != "uce"])
def test_every_method_runs(tmp_path: Path, method: str) -> None:
    run = train(method, tmp_path)
    assert json.loads((run / "result.json").read_text())["method"] == method
