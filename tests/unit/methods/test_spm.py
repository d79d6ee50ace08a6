"""SPM: membranes that are the identity at zero, their losses, and their strength at inference."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from diffusers.optimization import get_cosine_with_hard_restarts_schedule_with_warmup
from torch import nn

from tests.conftest import make_concept
from tests.helpers.methods import make_batch
from unlearn.methods.spm import SPM, Membrane, SPMOptions, permeable, strengths
from unlearn.models.noise_schedule import NoiseSchedule
from unlearn.models.pipeline import load_pipeline


def make_spm(folder: Path, **options: object) -> SPM:
    torch.manual_seed(1)
    pipe = load_pipeline(str(folder))
    options = {"num_inference_steps": 2, **options}
    spm = SPM(pipe.unet, NoiseSchedule.from_scheduler(pipe.scheduler), SPMOptions(**options))
    spm.prepare(pipe, make_concept("panda", "bear"))
    return spm


def test_the_learning_rate_rises_and_falls_three_times(random_model: Path) -> None:
    spm = make_spm(random_model, lr=1e-4, lr_warmup_steps=50, lr_cycles=3)
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], 1e-4)
    schedule = get_cosine_with_hard_restarts_schedule_with_warmup(optimizer, 50, 300, 3)
    for step in range(300):
        assert spm.learning_rate(step, 300) == pytest.approx(schedule.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        schedule.step()
    constant = make_spm(random_model, lr=1e-4)
    assert {constant.learning_rate(step, 300) for step in range(300)} == {1e-4}


@pytest.mark.parametrize(
    "plain",
    [nn.Linear(3, 5), nn.Conv2d(3, 5, 1), nn.Conv2d(3, 5, 3, padding=1, stride=2, bias=False)],
)
def test_a_membrane_adds_a_product_of_rank_one(plain: nn.Linear | nn.Conv2d) -> None:
    membrane = Membrane(plain)
    inputs = torch.randn(2, 4, 3) if isinstance(plain, nn.Linear) else torch.randn(2, 3, 4, 4)
    assert torch.equal(membrane(inputs), plain(inputs))
    nn.init.normal_(membrane.up)
    path = membrane(inputs) - plain(inputs)
    product = membrane.up.flatten(1) @ membrane.down.flatten(1)  # the change of the weight
    assert torch.linalg.matrix_rank(product) == 1
    with torch.no_grad():
        plain.weight += product.view_as(plain.weight)
    changed = plain(inputs)
    with torch.no_grad():
        plain.weight -= product.view_as(plain.weight)
    torch.testing.assert_close(plain(inputs) + path, changed, rtol=1e-4, atol=1e-5)
    membrane.strength = torch.tensor([0.0, 0.5])
    expected = plain(inputs) + path * membrane.strength.view(-1, *[1] * (path.ndim - 1))
    torch.testing.assert_close(membrane(inputs), expected, rtol=1e-4, atol=1e-5)


def test_at_the_start_the_network_is_the_base_network(random_model: Path) -> None:
    spm, batch = make_spm(random_model), make_batch()
    args = (batch["latents"][:, 0], batch["timesteps"][:, 0], batch["states"][:, 0])
    with torch.no_grad():
        expected = load_pipeline(str(random_model)).unet(*args).sample
        assert torch.equal(spm.unet(*args).sample, expected)
        for weight in spm.weights:
            weight += 0.1
        assert not torch.allclose(spm.unet(*args).sample, expected)
    torch.testing.assert_close(spm.teacher(*args), expected)
    layers = permeable(load_pipeline(str(random_model)).unet)
    assert spm.trained_weights.keys() == {f"{n}.{p}" for n in layers for p in ("down", "up")}


def test_anchoring_adds_the_change_for_other_texts(random_model: Path) -> None:
    spm, batch = make_spm(random_model, anchoring=7.0), make_batch()
    batch["seed"] = torch.arange(3)
    with torch.no_grad():
        torch.testing.assert_close(spm.loss(batch), spm.erase(batch)[0])  # nothing has changed
        for weight in spm.weights:
            weight += 0.1
        erase, z_t, t = spm.erase(batch)
        others = spm.other_states(batch["states"][:, 0], batch["seed"])
        args = (z_t[[0, 1, 2, 0]], t[[0, 1, 2, 0]], others)
        base = load_pipeline(str(random_model)).unet(*args).sample
        change = (spm.unet(*args).sample - base).square().mean()
        torch.testing.assert_close(spm.loss(batch), erase + 7 * change)
        assert change > 1e-6


def test_anchors_are_drawn_by_the_sample_s_seed_and_kept_when_unlike(random_model: Path) -> None:
    spm, states = make_spm(random_model, anchors=64), make_batch()["states"][:, 0]
    first, again, other = (spm.other_states(states, torch.tensor([n])) for n in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    own = states[torch.arange(64) % 3].flatten(1)
    ratios = first.flatten(1).norm(dim=1) / own.norm(dim=1)
    assert 0.8 <= ratios.min() < 0.9 < 1.1 < ratios.max() <= 1.2


def test_the_likelihood_of_an_anchor_falls_with_its_cosine(random_model: Path) -> None:
    """In two dimensions, kept with p = min(1, 1 - cos): E[p cos] / E[p] = -(1/4) / (1 - 1/π)."""
    spm = make_spm(random_model, anchors=1000)
    own = torch.tensor([[[3.0, 4.0]]])
    kept = torch.cat([spm.other_states(own, torch.tensor([seed])) for seed in range(4)])
    cosines = F.cosine_similarity(kept[:, 0], own[:, 0])
    expected = -0.25 / (1 - 1 / math.pi)  # 0 without a choice
    assert cosines.mean() == pytest.approx(expected, abs=0.04)  # 4 standard errors


def test_the_strength_of_a_prompt_is_its_likeness_to_the_target(random_model: Path) -> None:
    pipe = load_pipeline(str(random_model))
    prompts = ["panda", "a panda on a blue background", "a fox"]
    one = strengths(pipe, prompts, ["panda"])
    assert one[0] == pytest.approx(1, abs=1e-5)
    assert one[1] == 1  # it holds all of the target's tokens
    assert 0 <= one[2] < 1
    several = strengths(pipe, prompts, ["panda", "fox"])
    assert several[2] == 1
    assert strengths(pipe, ["a fox " * 40], ["panda"]) < 1  # cut as the pipeline cuts it


def test_installed_membranes_take_each_prompt_s_strength(random_model: Path) -> None:
    spm = make_spm(random_model)
    weights = {n: torch.randn_like(w) for n, w in spm.trained_weights.items()}
    pipe = load_pipeline(str(random_model))
    SPM.install(pipe, weights, {"targets": ["panda"]})
    pipe.set_progress_bar_config(disable=True)
    prompts = ["a panda", "a fox"]
    pipe(prompts, num_inference_steps=1, output_type="latent")
    expected = strengths(pipe, prompts, ["panda"]).repeat(2)  # without and with the prompt
    found = [m for m in pipe.unet.modules() if isinstance(m, Membrane)]
    pipe("a panda", num_inference_steps=1, num_images_per_prompt=2, output_type="latent")
    assert len(found) == len(weights) // 2
    assert all(torch.equal(m.strength, expected[[0, 0, 2, 2]]) for m in found)
    name = next(iter(weights))
    with pytest.raises(ValueError, match="made for another base model"):
        fresh = load_pipeline(str(random_model))
        SPM.install(fresh, {**weights, name: weights[name][:, :1]}, {"targets": ["panda"]})
    assert not any(isinstance(m, Membrane) for m in fresh.unet.modules())
