"""Each quirk of the reference, against a restatement of its formula."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.conftest import ALPHAS
from tests.helpers.methods import make_batch
from unlearn.methods.doco import DoCoOptions
from unlearn.methods.doco_reference import DoCoReference, DoCoReferenceOptions
from unlearn.models.noise_schedule import NoiseSchedule
from unlearn.models.pipeline import load_pipeline


def make_reference(
    folder: Path, prediction_type: str = "epsilon", **options: object
) -> DoCoReference:
    torch.manual_seed(1)
    pipe = load_pipeline(str(folder))
    options = {"discriminator_channels": 8, **options}
    reference = DoCoReference(
        pipe.unet,
        NoiseSchedule.from_alphas_cumprod(ALPHAS, prediction_type),
        DoCoReferenceOptions(**options),
    )
    for weight in reference.weights:  # away from the base
        weight.data += 0.05 * torch.randn_like(weight)
    return reference


@pytest.fixture
def reference(random_model: Path) -> DoCoReference:
    return make_reference(random_model)


def test_batch_norm_sees_real_and_fake_apart(reference: DoCoReference) -> None:
    norms = [m for m in reference.discriminator.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    assert not any(isinstance(m, nn.GroupNorm) for m in reference.discriminator.modules())
    seen: list[int] = []
    norms[0].register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    reference.gradients(make_batch())
    assert set(seen) == {3}  # never the six of real and fake together


def test_the_discriminator_s_step_is_polluted_by_the_unlearn_loss(
    reference: DoCoReference,
) -> None:
    """g_D = d/dφ [BCE(D(fake), 0) + BCE(D(real), 0) + BCE(D(fake), 1)]."""
    batch = make_batch()
    g_d = reference.gradients(batch)[0].discriminator
    alpha = ALPHAS[batch["timesteps"][:, 0]][:, None, None, None]
    z_t = alpha.sqrt() * batch["latents"][:, 0] + (1 - alpha).sqrt() * batch["noise"][:, 0]
    with torch.no_grad():
        student = reference.unet(z_t, batch["timesteps"][:, 0], batch["states"][:, 0]).sample
        teacher = reference.teacher(z_t, batch["timesteps"][:, 0], batch["teacher_states"])
    real, fake = ((z_t - (1 - alpha).sqrt() * o) / alpha.sqrt() for o in (teacher, student))
    d = reference.discriminator
    loss = F.softplus(d(real)).mean() + F.softplus(-d(fake)).mean() + F.softplus(d(fake)).mean()
    plain = torch.autograd.grad(loss, list(d.parameters()))
    for ours, expected in zip(g_d, plain, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-5)
    clean, _ = reference.warmup_gradients(batch)  # no L_u there
    pairs = zip(clean.discriminator, g_d, strict=True)
    assert max((a - b).abs().max().item() for a, b in pairs) > 1e-4


def test_surgery_lacks_the_norm_of_g_u(reference: DoCoReference) -> None:
    """g = g_u - λ cos(g_u, g_r) g_r/‖g_r‖, after both were clipped to norm 1 as a whole."""
    g_u = [torch.randn_like(w) for w in reference.weights]
    g_r = [torch.randn_like(w) for w in reference.weights]
    total_u = torch.cat([g.flatten() for g in g_u]).norm()
    total_r = torch.cat([g.flatten() for g in g_r]).norm()
    before = [w.detach().clone() for w in reference.weights]
    reference.step(torch.optim.SGD(reference.weights, lr=1.0), g_u, g_r)
    conflicts = 0
    for weight, old, u, r in zip(reference.weights, before, g_u, g_r, strict=True):
        u, r = u / total_u, r / total_r
        cosine = (u * r).sum() / (u.norm() * r.norm())
        conflicts += int(cosine < 0)
        expected = u - min(cosine.item(), 0.0) * r / r.norm()
        torch.testing.assert_close(old - weight.detach(), expected, rtol=1e-3, atol=1e-5)
    assert 0 < conflicts < len(g_u)


def test_the_discriminator_warms_up_one_step_longer(random_model: Path) -> None:
    reference = make_reference(random_model, warmup_steps=4)
    assert [reference.in_warmup(step) for step in (0, 3, 4, 5)] == [True, True, True, False]


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_relearning_regresses_to_the_noise(random_model: Path, prediction_type: str) -> None:
    reference = make_reference(random_model, prediction_type=prediction_type)
    batch = make_batch()
    _, metrics = reference.gradients(batch)
    alpha = ALPHAS[batch["timesteps"][:, 1]][:, None, None, None]
    z_t = alpha.sqrt() * batch["latents"][:, 1] + (1 - alpha).sqrt() * batch["noise"][:, 1]
    with torch.no_grad():
        output = reference.unet(z_t, batch["timesteps"][:, 1], batch["states"][:, 1]).sample
    expected = (output - batch["noise"][:, 1]).square().mean()
    torch.testing.assert_close(metrics["loss/relearn"], expected, rtol=1e-4, atol=1e-6)


def test_without_surgery_the_joint_gradient_is_clipped_once(random_model: Path) -> None:
    reference = make_reference(random_model, surgery="weighted_sum")
    g_u = [torch.randn_like(w) for w in reference.weights]
    g_r = [10 * torch.randn_like(w) for w in reference.weights]
    joint: list[Tensor] = [u + 0.1 * r for u, r in zip(g_u, g_r, strict=True)]
    norm = torch.cat([g.flatten() for g in joint]).norm()
    before = [w.detach().clone() for w in reference.weights]
    reference.step(torch.optim.SGD(reference.weights, lr=1.0), g_u, g_r)
    for weight, old, g in zip(reference.weights, before, joint, strict=True):
        torch.testing.assert_close(old - weight.detach(), g / norm, rtol=1e-3, atol=1e-6)


def test_first_token_is_detached_and_the_rate_is_constant(reference: DoCoReference) -> None:
    assert all(layer.detach_first_token for layer in reference.split_layers)
    assert reference.learning_rate(0, 10) == reference.learning_rate(9, 10)
    assert reference.options.detach_first_token


def test_options_that_the_reference_lacks_are_refused(random_model: Path) -> None:
    with pytest.raises(ValueError, match=r"method\.surgery='update' is unknown"):
        make_reference(random_model, surgery="update")
    with pytest.raises(TypeError, match="granularity"):
        make_reference(random_model, granularity="layer")


def test_what_the_reference_fixes_is_no_option_and_is_all_that_doco_reads() -> None:
    own = {each.name for each in fields(DoCoReferenceOptions)}
    fixed = {"granularity", "relearn_target", "lr_schedule", "start", "contexts",
             "discriminator_input", "detach_first_token"}  # fmt: skip
    assert {each.name for each in fields(DoCoOptions)} == own | fixed
    options = DoCoReferenceOptions()
    assert {name: getattr(options, name) for name in fixed} == {
        "granularity": "tensor", "relearn_target": "noise", "lr_schedule": "constant",
        "start": "base", "contexts": 0, "discriminator_input": "x0", "detach_first_token": True,
    }  # fmt: skip
    assert own.isdisjoint(fixed)
