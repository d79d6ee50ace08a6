"""Stable Diffusion 3, a rectified flow: against plain diffusers calls, with T5 and without."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import StableDiffusion3Pipeline
from torch import Tensor
from transformers import T5TokenizerFast

from tests.conftest import make_concept
from tests.helpers.flow import PROMPTS, SD3, WITHOUT_T5, draw_one, small
from tests.helpers.methods import batch_of, make_method
from unlearn.data.training_data import DataOptions, make_training_data
from unlearn.generation.image_cache import pipeline_fingerprint
from unlearn.generation.sampling import Sampler, SamplingRequest, draw_requests, generate
from unlearn.methods.registry import METHODS
from unlearn.models.frozen_layers import store_in_bf16
from unlearn.models.random_weights import PUBLISHED
from unlearn.models.text_states import encode_prompts, unpack_text
from unlearn.weights.delta import load_unlearned, save_unlearned

TAKEN = [name for name, method in METHODS.items() if not method.of_unets]


def plain_call(pipe: Any, z_t: Tensor, sigma: Tensor, prompts: list[str]) -> Tensor:
    """The transformer's output as diffusers' own pipeline asks for it."""
    states, _, pooled, _ = pipe.encode_prompt(
        prompts, None, None, device="cpu", do_classifier_free_guidance=False
    )
    return pipe.transformer(
        hidden_states=z_t, timestep=1000 * sigma.flatten(), encoder_hidden_states=states,
        pooled_projections=pooled,
    ).sample  # fmt: skip


def assert_plain_numbers(pipe: Any) -> None:
    """DoCo's teacher, losses and both gradients are those of two plain passes, by hand."""
    batch = batch_of(pipe, PROMPTS)
    doco: Any = make_method(pipe, "doco")
    with torch.no_grad():
        for weight in doco.weights:  # away from the base, so that the teacher differs
            weight += 0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    taught = doco.teacher_outputs(batch)[:, 0]
    (g_u, g_r, _), metrics = doco.gradients(batch)
    raw = (batch["timesteps"][0] + 1) / 1000
    sigma = (3 * raw / (1 + 2 * raw))[:, None, None, None]  # shifted by 3
    latents, noise = batch["latents"][0], batch["noise"][0]
    z_t = (1 - sigma) * latents + sigma * noise
    kept = [w.detach().clone() for w in doco.weights]
    with torch.no_grad():
        for weight, base in zip(doco.weights, doco.base, strict=True):
            weight.copy_(base)
        torch.testing.assert_close(taught, plain_call(pipe, z_t[:1], sigma[:1], PROMPTS[1:]))
        for weight, own in zip(doco.weights, kept, strict=True):
            weight.copy_(own)
    fake, relearned = (plain_call(pipe, z_t[[i]], sigma[[i]], [PROMPTS[i]]) for i in range(2))
    unlearn = F.softplus(doco.discriminator(z_t[:1] - sigma[:1] * fake)).mean()
    relearn = F.mse_loss(relearned, noise[1:] - latents[1:])
    torch.testing.assert_close(metrics["loss/unlearn"], unlearn.detach())
    torch.testing.assert_close(metrics["loss/relearn"], relearn.detach())
    for ours, loss in ((g_u, unlearn), (g_r, relearn)):
        expected = torch.autograd.grad(loss, doco.weights)
        assert all(g.abs().max() > 0 for g in expected)
        scale = max(float(g.abs().max()) for g in expected)
        for a, b in zip(ours, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * scale)


@pytest.mark.parametrize("t5", [False, True])
def test_a_step_is_that_of_plain_diffusers_calls(t5: bool) -> None:
    assert_plain_numbers(small(t5))


@pytest.mark.slow
def test_a_step_at_full_width_is_that_of_plain_diffusers_calls() -> None:
    with torch.device("meta"):
        networks = PUBLISHED[SD3].build_networks(1.0, 64)
    pipe = small(**{**networks["transformer"].config, "num_layers": 2, "pos_embed_max_size": 16})
    for part in ("text_encoder", "text_encoder_2"):
        config = networks[part].config
        config.num_hidden_layers = 2
        setattr(pipe, part, type(networks[part])(config).eval())
    assert pipe.transformer.config.caption_projection_dim == 24 * 64
    assert_plain_numbers(pipe)


def test_the_text_s_keys_and_values_train_and_their_biases_stay() -> None:
    pipe = small()
    doco: Any = make_method(pipe, "doco")
    expected = {
        f"transformer_blocks.{block}.attn.{side}.weight"
        for block in range(2)
        for side in ("add_k_proj", "add_v_proj")
    }
    assert set(doco.trained_weights) == expected
    assert {n for n, p in pipe.transformer.named_parameters() if p.requires_grad} == expected
    checkpoint = {"state_dict": doco.state_dict()}
    doco.on_save_checkpoint(checkpoint)
    own = {n for n in checkpoint["state_dict"] if not n.startswith("discriminator.")}
    assert own == {f"transformer.{name}" for name in expected}


@pytest.mark.parametrize("t5", [False, True])
def test_a_text_is_clip_s_and_t5_s_states_and_the_pooled_one(t5: bool) -> None:
    pipe = small(t5)
    states, pooled = unpack_text(pipe.transformer, encode_prompts(pipe, PROMPTS))
    assert pooled is not None
    expected, _, expected_pooled, _ = pipe.encode_prompt(PROMPTS, None, None, device="cpu")
    assert torch.equal(states, expected)
    assert torch.equal(pooled, expected_pooled)
    assert states.shape[1] == 77 + 256
    assert bool(states[:, 77:].any()) == t5
    assert not torch.allclose(pooled[0], pooled[1], atol=1e-3)


def test_t5_decides_what_the_cache_takes_for_the_same_model() -> None:
    keys = {pipeline_fingerprint(small()), pipeline_fingerprint(small(t5=True))}
    other = small(t5=True)
    other.tokenizer_3 = T5TokenizerFast(vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)])
    assert len(keys | {pipeline_fingerprint(other)}) == 3


def test_the_scaled_prediction_leaves_the_signal_s_share() -> None:
    doco: Any = make_method(small(), "doco", discriminator_input="scaled_x0")
    z_t, teacher, student = torch.randn(3, 1, 16, 8, 8)
    raw = 0.5
    sigma = 3 * raw / (1 + 2 * raw)
    for view, output in zip(
        doco.views(teacher, student, z_t, torch.tensor([499])), (teacher, student), strict=True
    ):
        torch.testing.assert_close(view, (1 - sigma) * (z_t - sigma * output))


def test_images_are_those_of_the_pipeline_and_its_own_scheduler() -> None:
    pipe, plain = small(), small()
    sampler = Sampler(num_inference_steps=2, guidance_scale=7.0, batch_size=2)
    drawn = generate(pipe, PROMPTS, [1, 2], sampler)
    assert torch.equal(drawn, generate(pipe, PROMPTS, [1, 2], sampler))
    plain.set_progress_bar_config(disable=True)
    expected = plain(
        PROMPTS, num_inference_steps=2, guidance_scale=7.0, output_type="pt",
        generator=[torch.Generator().manual_seed(seed) for seed in (1, 2)],
    ).images  # fmt: skip
    assert torch.equal(drawn, (expected.clamp(0, 1) * 255).round().byte())
    padded = generate(pipe, PROMPTS[1:], [2], sampler)
    assert (padded[0].int() - drawn[1].int()).abs().max() <= 1
    for scheduler in ("ddim", "dpm++"):
        with pytest.raises(ValueError, match=rf"evaluation\.scheduler={scheduler.strip('+')}"):
            other = replace(sampler, scheduler=scheduler)
            list(draw_requests(pipe, [SamplingRequest("a panda", 1, 7.0)], other))


def test_latents_are_shifted_and_scaled_as_the_vae_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unlearn.generation.sampling.default_batch_size", lambda pipe: 2)
    pipe, concept = small(), make_concept("panda", "bear")
    seen: list[Any] = []
    encode = pipe.vae.encode

    def recorded(images: Tensor) -> Any:
        seen.append(encode(images).latent_dist)
        return SimpleNamespace(latent_dist=seen[-1])

    monkeypatch.setattr(pipe.vae, "encode", recorded)
    options = DataOptions(
        images=2, relearn_images=0, num_inference_steps=1, flip=False, rescale=False
    )
    data = make_training_data(pipe, concept, options, Sampler(1, guidance_scale=7.0), seed=0)
    assert data.target_states.shape[-2:] == (
        77 + 256 + 1,
        pipe.transformer.config.joint_attention_dim,
    )
    [posterior] = seen
    torch.testing.assert_close(data.anchor.mean, (posterior.mean - 0.0609) * 1.5305)
    torch.testing.assert_close(data.anchor.std, posterior.std * 1.5305)


@pytest.mark.parametrize("name", TAKEN)
def test_methods_train_and_their_weights_load(name: str, folder: Path, tmp_path: Path) -> None:
    """One batch's loss, weights saved, and loaded into a pipeline that plain diffusers built."""
    pipe, concept = small(), make_concept("panda", "bear")
    module: Any = make_method(pipe, name)
    module.prepare(pipe, concept)
    batch, gradients = batch_of(pipe, PROMPTS), []
    if hasattr(module, "gradients"):
        gradients = module.gradients(batch)[0].unlearn
    elif not module.closed_form:
        gradients = torch.autograd.grad(module.loss(batch), module.weights, materialize_grads=True)
    assert all(g.isfinite().all() for g in gradients)
    with torch.no_grad():
        for weight, gradient in zip(module.weights, gradients, strict=False):
            weight -= 0.1 * torch.sign(gradient)
    path, metadata = tmp_path / "unlearned.safetensors", {"method": name}
    if module.at_inference:
        metadata["at_inference"] = json.dumps(module.at_inference)
    save_unlearned(module.trained_weights, path, metadata, module.part)
    plain = StableDiffusion3Pipeline.from_pretrained(folder, **WITHOUT_T5)
    base = draw_one(plain)
    load_unlearned(plain, path)
    for name_, weight in module.trained_weights.items():
        assert torch.equal(plain.transformer.state_dict()[name_], weight)
    assert not torch.equal(draw_one(plain), base)


@pytest.mark.parametrize("name", [name for name in METHODS if name not in TAKEN])
def test_methods_of_unets_are_refused(name: str, tmp_path: Path) -> None:
    message = rf"method\.name='{name}': is bound to a UNet, and a StableDiffusion3Pipeline has none"
    with pytest.raises(ValueError, match=message) as caught:
        make_method(small(), name)
    assert "doco" in str(caught.value)
    path = tmp_path / "unlearned.safetensors"
    save_unlearned({}, path, {"method": name, "at_inference": '{"text": "a panda"}'})
    if METHODS[name].AT_INFERENCE:  # of others no file says so
        with pytest.raises(ValueError, match=message):
            load_unlearned(small(), path)


def test_the_closed_form_start_is_refused() -> None:
    with pytest.raises(ValueError, match=r"method\.start='closed_form': .* method\.start=base"):
        make_method(small(), "doco", start="closed_form")


def test_frozen_weights_in_bf16_and_checkpointing_leave_a_step_as_it_is() -> None:
    steps = []
    for frugal in (False, True):
        pipe = small()
        torch.manual_seed(0)
        doco: Any = make_method(pipe, "doco")
        if frugal:
            store_in_bf16(pipe.transformer, doco.trained_weights)
            pipe.transformer.enable_gradient_checkpointing()
        with torch.autocast("cpu", torch.bfloat16):
            (g_u, g_r, _), metrics = doco.gradients(batch_of(pipe, PROMPTS))
        assert all(weight.dtype == torch.float32 for weight in doco.weights)
        steps.append([*g_u, *g_r, metrics["loss/unlearn"], metrics["loss/relearn"]])
    assert all(torch.equal(a, b) for a, b in zip(*steps, strict=True))
