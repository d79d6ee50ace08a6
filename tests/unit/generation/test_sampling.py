"""Generation: an image depends on its prompt and seed, not on its batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, StableDiffusionPipeline

from unlearn.generation.sampling import (
    SCHEDULERS,
    Sampler,
    SamplingRequest,
    draw_requests,
    generate,
    group_calls,
)
from unlearn.models.pipeline import load_pipeline
from unlearn.models.text_states import encode_prompts

PROMPTS = ["a panda", "a fox", "a bear"]
SAMPLER = Sampler(num_inference_steps=2, guidance_scale=6.0, batch_size=2)


def test_an_image_does_not_depend_on_its_batch(random_model: Path) -> None:
    pipe = load_pipeline(str(random_model))
    together = generate(pipe, PROMPTS, [1, 2, 3], SAMPLER)
    assert together.shape == (3, 3, 64, 64)
    assert together.dtype == torch.uint8
    again = generate(pipe, PROMPTS, [1, 2, 3], SAMPLER)
    assert torch.equal(together, again)
    alone = generate(pipe, PROMPTS[2:], [3], replace(SAMPLER, batch_size=4))
    assert (alone[0].int() - together[2].int()).abs().max() <= 1
    other = generate(pipe, PROMPTS[2:], [4], SAMPLER)
    assert (other[0].int() - together[2].int()).abs().max() > 1


def plain_scheduler(pipe: StableDiffusionPipeline, scheduler: str) -> None:
    """What diffusers' users would do."""
    if scheduler == "ddim":
        config = pipe.scheduler.config
        pipe.scheduler = DDIMScheduler.from_config(config, clip_sample=False)
    elif scheduler == "dpm++":
        pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)


@pytest.mark.parametrize(("scheduler", "eta"), [("own", 0.0), ("ddim", 1.0), ("dpm++", 0.0)])
def test_a_call_draws_what_diffusers_draws_with_one_generator(
    random_model: Path, scheduler: str, eta: float
) -> None:
    """The pipeline's own scheduler and DDIM with eta 1 draw noise in every step as well."""
    assert scheduler in SCHEDULERS
    how: dict[str, Any] = {"negative_prompt": "an owl", "eta": eta}
    shots = [
        SamplingRequest("a panda", 2024, 6.0, None, 3),
        SamplingRequest("a fox", 2024, 6.0, None, 3),
    ]
    pipe = load_pipeline(str(random_model))
    sampler = Sampler(3, guidance_scale=1.0, scheduler=scheduler, **how)  # a request has its own
    drawn = dict(draw_requests(pipe, shots, sampler))
    alone = load_pipeline(str(random_model))
    alone.set_progress_bar_config(disable=True)
    plain_scheduler(alone, scheduler)
    for number, shot in enumerate(shots):
        expected = alone(
            shot.prompt, num_images_per_prompt=3, generator=torch.Generator().manual_seed(2024),
            num_inference_steps=3, guidance_scale=6.0, output_type="pt", **how,
        ).images  # fmt: skip
        assert torch.equal(drawn[number], (expected.clamp(0, 1) * 255).round().byte())
    first = drawn[0].int()
    assert all((first[0] - other).abs().max() > 1 for other in (*first[1:], drawn[1][0].int()))


def test_shots_of_other_sizes_and_guidances_are_drawn_apart(random_model: Path) -> None:
    pipe = load_pipeline(str(random_model))
    shots = [
        SamplingRequest("a panda", 1, 6.0),
        SamplingRequest("a fox", 2, 6.0, (32, 64)),
        SamplingRequest("a bear", 3, 2.0),
        SamplingRequest("an owl", 4, 6.0),
        SamplingRequest("an owl", 4, 6.0, None, 2),
    ]
    assert list(group_calls(shots, [0, 1, 2, 3, 4], 2)) == [[4], [0, 3], [1], [2]]
    drawn = dict(draw_requests(pipe, shots, SAMPLER))
    assert [tuple(drawn[i].shape) for i in range(5)] == [
        (1, 3, 64, 64), (1, 3, 32, 64), (1, 3, 64, 64), (1, 3, 64, 64), (2, 3, 64, 64)
    ]  # fmt: skip
    for number, shot in enumerate(shots):
        (((_, alone)),) = draw_requests(pipe, [shot], SAMPLER)
        assert (alone.int() - drawn[number].int()).abs().max() <= 1
    other = generate(pipe, ["a bear"], [3], SAMPLER)
    assert (other.int() - drawn[2].int()).abs().max() > 1


def test_prompts_over_the_token_limit_are_refused(random_model: Path) -> None:
    pipe = load_pipeline(str(random_model))
    assert encode_prompts(pipe, ["a panda", ""]).shape == (2, 32, 32)
    with pytest.raises(ValueError, match=r"has 42 tokens; the limit is 32"):
        encode_prompts(pipe, ["panda " * 40])


def test_an_unbuilt_embedded_model_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("unlearn.models.loading.EMBEDDED", tmp_path)
    with pytest.raises(
        ValueError, match=r"model\.pretrained='emoji': .*stage=vae`, then clip, unet"
    ):
        load_pipeline("emoji")
