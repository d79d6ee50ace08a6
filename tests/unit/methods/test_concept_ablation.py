"""Concept Ablation against its equations, written out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.conftest import ALPHAS
from tests.helpers.methods import make_batch
from unlearn.methods.concept_ablation import ConceptAblation, ConceptAblationOptions
from unlearn.models.noise_schedule import NoiseSchedule
from unlearn.models.pipeline import load_pipeline


def make_ablation(
    folder: Path, prediction_type: str = "epsilon", **options: object
) -> ConceptAblation:
    torch.manual_seed(1)
    pipe = load_pipeline(str(folder))
    ablation = ConceptAblation(
        pipe.unet,
        NoiseSchedule.from_alphas_cumprod(ALPHAS, prediction_type),
        ConceptAblationOptions(**options),
    )
    for weight in ablation.weights:  # away from the base: the current model is the teacher
        weight.data += 0.05 * torch.randn_like(weight)
    return ablation


def noisy(ablation: ConceptAblation, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    t = batch["timesteps"][:, 0]
    alpha = ALPHAS[t][:, None, None, None]
    z_t = alpha.sqrt() * batch["latents"][:, 0] + (1 - alpha).sqrt() * batch["noise"][:, 0]
    return z_t, t, alpha


def test_the_target_is_what_the_current_model_draws_for_the_anchor(random_model: Path) -> None:
    ablation, batch = make_ablation(random_model), make_batch()
    z_t, t, _ = noisy(ablation, batch)
    with torch.no_grad():
        target = ablation.unet(z_t, t, batch["teacher_states"]).sample
    assert (target - ablation.teacher(z_t, t, batch["teacher_states"])).abs().max() > 1e-4
    loss = (ablation.unet(z_t, t, batch["states"][:, 0]).sample - target).square().mean()
    torch.testing.assert_close(ablation.loss(batch), loss)
    ours = torch.autograd.grad(ablation.loss(batch), ablation.weights)
    for a, b in zip(ours, torch.autograd.grad(loss, ablation.weights), strict=True):
        torch.testing.assert_close(a, b)


def test_keys_and_values_train_or_all_of_the_attentions(random_model: Path) -> None:
    few = make_ablation(random_model).trained_weights.keys()
    every = make_ablation(random_model, trained="attention").trained_weights.keys()
    assert few < every
    assert {name.split(".")[-2] for name in few} == {"to_k", "to_v"}
    layers = {"attn1.to_q", "attn1.to_k", "attn2.to_q", "attn2.to_v", "attn2.to_out.0"}
    for layer in layers:
        assert any(f"{layer}.weight" in name for name in every)
    assert not any("ff." in name or "norm" in name or "resnets" in name for name in every)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_noise_based_target_is_the_model_s_training_target(
    random_model: Path, prediction_type: str
) -> None:
    ablation = make_ablation(random_model, ablation_target="noise", prediction_type=prediction_type)
    batch = make_batch()
    z_t, t, alpha = noisy(ablation, batch)
    latents, target = batch["latents"][:, 0], batch["noise"][:, 0]
    if prediction_type == "v_prediction":
        target = alpha.sqrt() * target - (1 - alpha).sqrt() * latents
    loss = (ablation.unet(z_t, t, batch["states"][:, 0]).sample - target).square().mean()
    torch.testing.assert_close(ablation.loss(batch), loss)


def test_the_relearn_half_plays_no_part(random_model: Path) -> None:
    ablation, batch = make_ablation(random_model), make_batch()
    loss = ablation.loss(batch)
    for key in ("latents", "noise", "states"):
        batch[key][:, 1] = float("nan")
    assert torch.equal(ablation.loss(batch), loss)


def test_another_target_is_refused(random_model: Path) -> None:
    with pytest.raises(ValueError, match=r"method\.ablation_target='base' is unknown"):
        make_ablation(random_model, ablation_target="base")
