"""DoCo's step: exact gradients from one pass, an untouched discriminator, a warm-up of D alone."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.conftest import ALPHAS, make_concept
from tests.helpers.methods import make_batch, make_doco
from unlearn.methods.doco import DoCo, DoCoOptions
from unlearn.methods.gradients import Gradients
from unlearn.methods.uce import UCE, UCEOptions, edit_matrix, prompt_states
from unlearn.models.cross_attention import SplitLinear, cross_attention_layers, per_chunk_weights
from unlearn.models.noise_schedule import NoiseSchedule
from unlearn.models.pipeline import load_pipeline


@pytest.fixture
def doco(random_model: Path) -> DoCo:
    doco = make_doco(random_model)
    for weight in doco.weights:  # away from the base, so that teacher and student differ
        weight.data += 0.05 * torch.randn_like(weight)
    return doco


def test_gradients_equal_two_separate_backward_passes(doco: DoCo) -> None:
    """g_u and g_r against plain autograd on two forward passes, written out from the equations."""
    batch = make_batch()
    (g_u, g_r, _), metrics = doco.gradients(batch)
    alphas = ALPHAS[batch["timesteps"]][..., None, None, None]
    z_t = alphas.sqrt() * batch["latents"] + (1 - alphas).sqrt() * batch["noise"]

    for half, ours in ((0, g_u), (1, g_r)):
        output = doco.unet(z_t[:, half], batch["timesteps"][:, half], batch["states"][:, half])
        if half == 0:
            a = alphas[:, 0]
            x0 = (z_t[:, 0] - (1 - a).sqrt() * output.sample) / a.sqrt()
            loss = F.softplus(doco.discriminator(x0)).mean()  # BCE with logits, label 0
            assert torch.allclose(metrics["loss/unlearn"], loss, rtol=1e-5)
        else:
            loss = (output.sample - batch["noise"][:, 1]).square().mean()
            assert torch.allclose(metrics["loss/relearn"], loss, rtol=1e-5)
        plain = torch.autograd.grad(loss, doco.weights)
        for a_grad, b_grad in zip(ours, plain, strict=True):
            assert b_grad.abs().max() > 0
            torch.testing.assert_close(a_grad, b_grad, rtol=1e-3, atol=1e-7)


def test_the_teacher_is_the_base_network(random_model: Path, doco: DoCo) -> None:
    batch = make_batch()
    args = (batch["latents"][:, 0], batch["timesteps"][:, 0], batch["teacher_states"])
    with torch.no_grad():
        expected = load_pipeline(str(random_model)).unet(*args).sample
        student = doco.unet(*args).sample
    torch.testing.assert_close(doco.teacher(*args), expected)
    assert (student - expected).abs().max() > 1e-4


def test_the_unlearn_loss_leaves_the_discriminator_without_gradient(doco: DoCo) -> None:
    """g_D is that of L_D alone, computed from the same fake and the same D."""
    batch = make_batch()
    g_d = doco.gradients(batch)[0].discriminator
    assert all(p.grad is None for p in doco.parameters())
    alphas = ALPHAS[batch["timesteps"][:, 0]][:, None, None, None]
    z_t = alphas.sqrt() * batch["latents"][:, 0] + (1 - alphas).sqrt() * batch["noise"][:, 0]
    with torch.no_grad():
        student = doco.unet(z_t, batch["timesteps"][:, 0], batch["states"][:, 0]).sample
        teacher = doco.teacher(z_t, batch["timesteps"][:, 0], batch["teacher_states"])
    real, fake = ((z_t - (1 - alphas).sqrt() * o) / alphas.sqrt() for o in (teacher, student))
    loss = F.softplus(doco.discriminator(real)).mean()
    loss = loss + F.softplus(-doco.discriminator(fake)).mean()
    plain = torch.autograd.grad(loss, list(doco.discriminator.parameters()))
    for ours, expected in zip(g_d, plain, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-6)


def test_warm_up_gradient_is_the_full_step_s_discriminator_gradient(doco: DoCo) -> None:
    batch = make_batch()
    alone, _ = doco.warmup_gradients(batch)
    full, _ = doco.gradients(batch)
    assert not alone.unlearn and not alone.relearn
    for a, b in zip(alone.discriminator, full.discriminator, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


def test_relearning_from_the_teacher_is_zero_at_the_base(random_model: Path) -> None:
    doco = make_doco(random_model, relearn_target="teacher")
    (_, g_r, _), metrics = doco.gradients(make_batch())
    assert metrics["loss/relearn"] < 1e-10
    assert max(g.abs().max().item() for g in g_r) < 1e-5


def move(doco: DoCo, g_u: list[Tensor], g_r: list[Tensor]) -> list[Tensor]:
    """-Δθ of one step of plain SGD at lr 1 (so -Δθ is the gradient that θ was given)."""
    before = [w.detach().clone() for w in doco.weights]
    doco.step(torch.optim.SGD(doco.weights, lr=1.0), g_u, g_r)
    return [b - w.detach() for b, w in zip(before, doco.weights, strict=True)]


def test_surgery_leaves_no_component_against_relearning(doco: DoCo) -> None:
    g_u, g_r, _ = map(list, doco.gradients(make_batch())[0])
    g_u[0] = -g_r[0]  # certain conflict
    for c, r in zip(move(doco, g_u, g_r), g_r, strict=True):
        assert (c * r).sum() >= -1e-6 * r.norm()


def test_projecting_the_update_survives_the_preconditioner(random_model: Path) -> None:
    """AdamW turns a projected gradient back against g_r; the projected update never is."""
    against = {}
    for surgery in ("gradient", "update"):
        doco = make_doco(random_model, surgery=surgery)
        optimizer = torch.optim.AdamW(doco.weights, lr=1e-3, weight_decay=0)
        generator = torch.Generator().manual_seed(0)
        worst = 0.0
        for _ in range(4):
            pair = [[torch.randn(w.shape, generator=generator) for w in doco.weights] for _ in "ur"]
            before = [w.detach().clone() for w in doco.weights]
            doco.step(optimizer, *pair)
            for b, w, r in zip(before, doco.weights, pair[1], strict=True):
                worst = min(worst, (((b - w.detach()) * r).sum() / r.norm()).item())
        against[surgery] = worst
    assert against["update"] > -1e-6
    assert against["gradient"] < -1e-4


@pytest.mark.parametrize("surgery", ["unlearn_only", "sum", "weighted_sum"])
def test_surgery_can_be_off(random_model: Path, surgery: str) -> None:
    doco = make_doco(random_model, surgery=surgery)
    g_u = [torch.full_like(w, 1e-3) for w in doco.weights]  # norms under 1: clipping leaves them
    g_r = [torch.full_like(w, -2e-3) for w in doco.weights]
    expected = {"unlearn_only": 1e-3, "sum": -1e-3, "weighted_sum": 0.8e-3}[surgery]
    for c in move(doco, g_u, g_r):
        torch.testing.assert_close(c, torch.full_like(c, expected), rtol=1e-3, atol=1e-6)


def test_every_trained_weight_is_a_cross_attention_key_or_value(doco: DoCo) -> None:
    names = set(cross_attention_layers(doco.unet))
    assert {f"{n}.weight" for n in names} == set(doco.trained_weights)
    assert all(".attn2.to_" in n and n.rsplit("_", 1)[1] in "kv" for n in names)
    trainable = {n for n, p in doco.unet.named_parameters() if p.requires_grad}
    assert trainable == {f"{n}.weight" for n in names}


def test_the_scaled_prediction_is_the_noisy_latents_less_the_noise(random_model: Path) -> None:
    """√ᾱ x̂0 = z_t − √(1−ᾱ) ε̂: nothing is divided by a small √ᾱ."""
    doco = make_doco(random_model, discriminator_input="scaled_x0")
    z_t, teacher, student = torch.randn(3, 2, 4, 16, 16)
    timesteps = torch.tensor([0, 999])
    sigma = (1 - ALPHAS[timesteps]).sqrt()[:, None, None, None]
    for view, output in zip(
        doco.views(teacher, student, z_t, timesteps), (teacher, student), strict=True
    ):
        torch.testing.assert_close(view, z_t - sigma * output, rtol=1e-4, atol=1e-5)
    plain, _ = make_doco(random_model).views(teacher, student, z_t, timesteps)
    assert plain[1].abs().max() > 10 * view[1].abs().max()


def written_out(doco: DoCo, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """x̂0 of the teacher and of the student, from the equations."""
    t, states = batch["timesteps"][:, 0], batch["states"][:, 0]
    alpha = ALPHAS[t][:, None, None, None]
    z_t = alpha.sqrt() * batch["latents"][:, 0] + (1 - alpha).sqrt() * batch["noise"][:, 0]
    outputs = doco.teacher(z_t, t, batch["teacher_states"]), doco.unet(z_t, t, states).sample
    real, fake = ((z_t - (1 - alpha).sqrt() * output) / alpha.sqrt() for output in outputs)
    return real, fake


def test_the_first_token_can_be_detached(random_model: Path) -> None:
    """Same output, and the gradient that is left when token 0's key and value are constants."""
    layer = torch.nn.Linear(5, 4, bias=False)
    split = SplitLinear.from_linear(layer)
    split.detach_first_token = True
    states = torch.randn(2, 3, 5)
    leaf = split.weight.detach().requires_grad_()
    with per_chunk_weights([split], [[leaf]]):
        output = split(states)
    torch.testing.assert_close(output, layer(states))
    output.square().sum().backward()
    expected = 2 * torch.einsum("bto,bti->oi", layer(states)[:, 1:], states[:, 1:])
    torch.testing.assert_close(leaf.grad, expected)
    doco = make_doco(random_model, detach_first_token=True)
    assert all(layer.detach_first_token for layer in doco.split_layers)


def test_accumulated_batches_give_the_mean_gradient_once(random_model: Path) -> None:
    doco = make_doco(random_model, accumulate_grad_batches=2)
    doco._trainer = SimpleNamespace(world_size=1)  # stands in for a Trainer of one process
    first, second = (Gradients(*([g] for g in torch.randn(3, 3))) for _ in range(2))
    assert doco.mean_gradients(first, last=False) is None
    mean = doco.mean_gradients(second, last=True)
    assert mean is not None
    for (found,), (a,), (b,) in zip(mean, first, second, strict=True):
        torch.testing.assert_close(found, (a + b) / 2)
    assert doco.sums is None
    with pytest.raises(ValueError, match=r"method\.accumulate_grad_batches=0"):
        make_doco(random_model, accumulate_grad_batches=0)


def test_the_cosine_schedule_starts_after_the_warm_up_and_ends_at_zero(random_model: Path) -> None:
    doco = make_doco(random_model, lr=2e-4, warmup_steps=100, lr_schedule="cosine")
    doco._trainer = SimpleNamespace(num_training_batches=700)
    rates = [doco.learning_rate(step - 100, doco.unlearning_steps) for step in (100, 400, 700)]
    assert rates == pytest.approx([2e-4, 1e-4, 0.0])
    assert make_doco(random_model, lr=2e-4).learning_rate(699, 700) == 2e-4


@pytest.mark.parametrize(
    "option",
    ["surgery", "relearn_target", "lr_schedule", "discriminator_input", "start"],
)
def test_an_unknown_option_is_refused(random_model: Path, option: str) -> None:
    with pytest.raises(ValueError, match=rf"method\.{option}='nonsense' is unknown"):
        make_doco(random_model, **{option: "nonsense"})


def test_the_closed_form_start_is_that_edit(random_model: Path) -> None:
    """And the teacher stays the base model, whatever the start."""
    pipe, concept = load_pipeline(str(random_model)), make_concept("panda", "bear")
    doco = DoCo(
        pipe.unet, NoiseSchedule.from_scheduler(pipe.scheduler), DoCoOptions(start="closed_form")
    )
    other = load_pipeline(str(random_model))
    uce = UCE(
        other.unet, NoiseSchedule.from_scheduler(other.scheduler), UCEOptions(edits="prompts")
    )
    doco.prepare(pipe, concept)
    uce.prepare(other, concept)
    for ours, theirs, base in zip(doco.weights, uce.weights, doco.base, strict=True):
        assert torch.equal(ours, theirs)
        assert not torch.equal(ours, base)
    in_context = DoCo(
        load_pipeline(str(random_model)).unet,
        NoiseSchedule.from_scheduler(pipe.scheduler),
        DoCoOptions(start="closed_form", contexts=4),
    )
    in_context.prepare(pipe, concept)
    matrix = edit_matrix(*prompt_states(pipe, concept, 4))
    for ours, base in zip(in_context.weights, doco.base, strict=True):
        torch.testing.assert_close(ours, (base.double() @ matrix).float())
    untouched = DoCo(
        load_pipeline(str(random_model)).unet,
        NoiseSchedule.from_scheduler(pipe.scheduler),
        DoCoOptions(),
    )
    untouched.prepare(pipe, concept)
    assert all(torch.equal(*pair) for pair in zip(untouched.weights, untouched.base, strict=True))
