"""The weights that ship: an ordinary diffusers folder, small, attributed, and obedient."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
from safetensors import safe_open
from transformers import CLIPModel, CLIPProcessor

from unlearn.concepts.vocabulary import load_vocabulary
from unlearn.evaluation.judge import Judge
from unlearn.utils.paths import EMBEDDED

WORDS = load_vocabulary()
SHIPPED = sorted(EMBEDDED.rglob("*.safetensors"))


@pytest.fixture(scope="module")
def pipe() -> StableDiffusionPipeline:
    """Loaded by diffusers alone."""
    pipe = StableDiffusionPipeline.from_pretrained(EMBEDDED, torch_dtype=torch.float32)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_the_folder_is_small_half_precision_and_has_its_papers() -> None:
    assert sum(f.stat().st_size for f in EMBEDDED.rglob("*") if f.is_file()) <= 40 * 2**20
    assert len(SHIPPED) >= 5
    for path in SHIPPED:
        with safe_open(path, framework="pt") as file:
            types = {file.get_slice(n).get_dtype() for n in file.keys()}  # noqa: SIM118
        assert types <= {"F16", "I64"}, path
    assert "CC BY 4.0" in (EMBEDDED / "LICENSE").read_text()
    assert "| objects |" in (EMBEDDED / "README.md").read_text()
    assert not list(EMBEDDED.rglob("*.bin")) + list(EMBEDDED.rglob("*.ckpt"))


@pytest.mark.slow
def test_the_base_model_draws_what_the_judge_recognises(pipe: StableDiffusionPipeline) -> None:
    names = ["panda", "pizza", "rocket", "strawberry", "bus", "castle", "bomb", "guitar"]
    images = pipe(
        [f"a picture of a {n}" for n in names],
        num_inference_steps=20,
        guidance_scale=6.0,
        generator=[torch.Generator().manual_seed(i) for i in range(len(names))],
        output_type="pt",
    ).images
    verdict = Judge.load(EMBEDDED / "judges" / "judge").judge((images * 255).round().byte())
    assert sum(seen == name for seen, name in zip(verdict.objects, names, strict=True)) >= 7


def test_clip_scores_an_image_highest_with_its_own_name(pipe: StableDiffusionPipeline) -> None:
    clip = CLIPModel.from_pretrained(EMBEDDED / "clip", torch_dtype=torch.float32)
    processor = CLIPProcessor.from_pretrained(EMBEDDED / "clip")
    image = pipe(
        "a panda", num_inference_steps=20, guidance_scale=6.0,
        generator=torch.Generator().manual_seed(0),
    ).images[0]  # fmt: skip
    texts = ["a panda", "a pizza", "a rocket", "a castle"]
    inputs = processor(text=texts, images=image, return_tensors="pt", padding=True)
    inputs.pop("attention_mask")
    with torch.no_grad():
        assert clip(**inputs).logits_per_image.argmax().item() == 0


def test_every_judge_knows_the_vocabulary() -> None:
    for path in sorted(Path(EMBEDDED / "judges").iterdir()):
        config = Judge.load(path).config
        assert config["num_objects"] == len(WORDS.objects)
        assert config["num_styles"] == len(WORDS.styles)
        assert 0 < config["broken_threshold"] < 1
