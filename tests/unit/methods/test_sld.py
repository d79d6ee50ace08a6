"""SLD against its equations."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler

from tests.conftest import make_concept
from tests.helpers.methods import PROMPTS, STEPS, sample
from unlearn.methods.sld import SLD, SLDOptions
from unlearn.models.noise_schedule import NoiseSchedule
from unlearn.models.pipeline import load_pipeline
from unlearn.models.text_states import encode_prompts
from unlearn.weights.delta import load_unlearned, save_unlearned


def test_sld_follows_its_equations(random_model: Path, tmp_path: Path) -> None:
    """A whole sampling, written out; twice, since the momentum must begin anew."""
    pipe, concept = load_pipeline(str(random_model)), make_concept("panda", "bear")
    options = {"scale": 20.0, "warmup_steps": 1, "threshold": 0.01, "momentum_scale": 0.5,
               "momentum_decay": 0.7}  # fmt: skip
    method = SLD(pipe.unet, NoiseSchedule.from_scheduler(pipe.scheduler), SLDOptions(**options))
    method.prepare(pipe, concept)

    scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    scheduler.set_timesteps(STEPS)
    text, null, unsafe = (
        encode_prompts(pipe, p) for p in (PROMPTS, [""] * len(PROMPTS), ["panda"] * len(PROMPTS))
    )
    z = torch.randn(len(PROMPTS), 4, 16, 16, generator=torch.Generator().manual_seed(0))
    momentum = torch.zeros_like(z)
    with torch.no_grad():
        for step, t in enumerate(scheduler.timesteps):
            e_u, e_c, e_s = (pipe.unet(z, t, states).sample for states in (null, text, unsafe))
            mu = (20.0 * (e_c - e_s).abs()).clamp(max=1) * (e_c - e_s < 0.01)
            gamma = mu * (e_s - e_u) + 0.5 * momentum
            momentum = 0.7 * momentum + 0.3 * gamma
            guided = e_c - e_u - (gamma if step >= 1 else 0)
            z = scheduler.step(e_u + 5.0 * guided, t, z).prev_sample
    plain = sample(pipe)

    metadata = {"method": "sld", "at_inference": json.dumps(method.at_inference)}
    save_unlearned(method.trained_weights, tmp_path / "sld.safetensors", metadata)
    load_unlearned(pipe, tmp_path / "sld.safetensors")
    for _ in range(2):
        torch.testing.assert_close(sample(pipe), z, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(plain, z, rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="needs classifier-free guidance"):
        sample(pipe, guidance_scale=1.0)
