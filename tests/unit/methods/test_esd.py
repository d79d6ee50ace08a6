"""ESD: its latents against the diffusers pipeline, its target by hand, its weights by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from tests.conftest import make_concept
from tests.helpers.methods import make_batch
from unlearn.methods.esd import ESD, ESDOptions
from unlearn.methods.negative_guidance import denoise, negative_guidance
from unlearn.models.noise_schedule import NoiseSchedule
from unlearn.models.pipeline import load_pipeline
from unlearn.models.text_states import encode_prompts


def make_esd(folder: Path, **options: object) -> ESD:
    pipe = load_pipeline(str(folder))
    options = {"num_inference_steps": 4, **options}
    esd = ESD(pipe.unet, NoiseSchedule.from_scheduler(pipe.scheduler), ESDOptions(**options))
    esd.prepare(pipe, make_concept("panda", "bear"))
    for weight in esd.weights:  # away from the base, so that teacher and student differ
        weight.data += 0.05 * torch.randn_like(weight)
    return esd


def test_the_latents_are_those_of_the_pipeline_s_own_sampling(random_model: Path) -> None:
    """Each sample as far as its own stop says, with classifier-free guidance."""
    pipe = load_pipeline(str(random_model))
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    noise = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    path = [noise]

    def keep(pipe: object, step: int, t: Tensor, values: dict[str, Tensor]) -> dict[str, Tensor]:
        path.append(values["latents"].clone())
        return values

    pipe(["a panda", "a fox"], latents=noise, num_inference_steps=5, guidance_scale=3.0,
         output_type="latent", callback_on_step_end=keep)  # fmt: skip
    stops = torch.tensor([3, 1])
    pipe.scheduler.set_timesteps(5)
    states, null = encode_prompts(pipe, ["a panda", "a fox"]), encode_prompts(pipe, ["", ""])
    z_t, timesteps = denoise(
        lambda *args: pipe.unet(*args).sample, pipe.scheduler, noise, stops, states, null, 3.0
    )
    torch.testing.assert_close(z_t, torch.stack([path[3][0], path[1][1]]), rtol=1e-4, atol=1e-4)
    assert timesteps.tolist() == pipe.scheduler.timesteps[stops].tolist()


def test_the_target_points_away_from_the_concept() -> None:
    null, with_text = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 1.0])
    assert negative_guidance(null, with_text, 1.0).tolist() == [-1.0, 3.0]
    assert negative_guidance(null, with_text, 0.0).tolist() == [1.0, 2.0]


def test_the_loss_is_the_error_to_the_base_model_s_negative_guidance(random_model: Path) -> None:
    esd, batch = make_esd(random_model, eta=2.0), make_batch()
    loss, z_t, t = esd.erase(batch)
    assert torch.equal(loss, esd.loss(batch))
    base = load_pipeline(str(random_model))
    with torch.no_grad():
        null = base.unet(z_t, t, encode_prompts(base, [""] * len(z_t))).sample
        target = null - 2 * (base.unet(z_t, t, batch["states"][:, 0]).sample - null)
        output = esd.unet(z_t, t, batch["states"][:, 0]).sample
    torch.testing.assert_close(loss.detach(), (output - target).square().mean())


def test_a_low_timestep_is_sampled_further(random_model: Path) -> None:
    esd, batch = make_esd(random_model), make_batch()
    batch["timesteps"][:, 0] = torch.tensor([999, 500, 0])
    _, z_t, timesteps = esd.erase(batch)
    assert timesteps.tolist() == esd.scheduler.timesteps[[0, 1, 3]].tolist()
    assert torch.equal(z_t[0], batch["noise"][0, 0])  # no step taken


@pytest.mark.parametrize("trained", ["x", "u"])
def test_esd_x_trains_the_cross_attentions_and_esd_u_nearly_all_else(
    random_model: Path, trained: str
) -> None:
    names = set(make_esd(random_model, trained=trained).trained_weights)
    everything = dict(load_pipeline(str(random_model)).unet.named_parameters())
    cross = {n for n in everything if ".attn2." in n}
    left = {n for n in everything if n.startswith(("time_embedding", "conv_norm_out", "conv_out"))}
    assert cross and left
    assert names == (cross if trained == "x" else everything.keys() - cross - left)


def test_bad_options_are_refused(random_model: Path) -> None:
    with pytest.raises(ValueError, match=r"method\.trained='y' is unknown"):
        make_esd(random_model, trained="y")
    with pytest.raises(ValueError, match=r"method\.num_inference_steps=0"):
        make_esd(random_model, num_inference_steps=0)
