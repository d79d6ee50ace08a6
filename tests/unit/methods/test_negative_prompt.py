"""A negative prompt is the pipeline's own."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.conftest import make_concept
from tests.helpers.methods import PROMPTS, sample
from unlearn.methods.negative_prompt import NegativePrompt
from unlearn.methods.options import MethodOptions
from unlearn.models.noise_schedule import NoiseSchedule
from unlearn.models.pipeline import load_pipeline


def test_every_prompt_gets_the_negative_prompt(random_model: Path) -> None:
    pipe, concept = load_pipeline(str(random_model)), make_concept("panda", "bear")
    method = NegativePrompt(
        pipe.unet, NoiseSchedule.from_scheduler(pipe.scheduler), MethodOptions()
    )
    method.prepare(pipe, concept)
    expected = sample(pipe, negative_prompt=["panda"] * len(PROMPTS))
    plain = sample(pipe)
    both = sample(pipe, negative_prompt=["panda, fox"] * len(PROMPTS))
    NegativePrompt.install(pipe, {}, method.at_inference)
    assert torch.equal(sample(pipe), expected)
    assert not torch.equal(plain, expected)
    assert torch.equal(sample(pipe, negative_prompt=["fox"] * len(PROMPTS)), both)
    for prompt in ("a fox", ["a fox"]):
        pipe(prompt, num_inference_steps=1, output_type="latent")
