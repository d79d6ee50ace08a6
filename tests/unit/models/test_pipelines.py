"""Every kind of backbone against plain diffusers calls: texts, outputs, gradients, sampling."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline, DPMSolverMultistepScheduler
from safetensors.torch import save_file
from torch import Tensor

from tests.conftest import make_concept
from tests.helpers.methods import batch_of, make_method
from unlearn.data.training_data import DataOptions, make_training_data
from unlearn.generation.sampling import Sampler, default_batch_size, generate
from unlearn.methods.registry import METHODS
from unlearn.methods.uce import token_states
from unlearn.models.pipeline import load_pipeline
from unlearn.models.random_weights import PUBLISHED
from unlearn.models.text_states import encode_prompts, pack_text, unconditional_text, unpack_text
from unlearn.weights.delta import load_unlearned, save_unlearned
from unlearn.weights.importing import load_weights

SD14, _, SD21, SDXL, _ = PUBLISHED
PROMPTS = ["a panda", "a bear"]


def small(name: str) -> Any:
    """Narrow; of SDXL also with the fewest transformer blocks, always the same weights."""
    pipe: Any = load_pipeline(name, random_weights=True, width=0.05, image_size=64)
    if name == SDXL:
        torch.manual_seed(0)
        config = {**pipe.unet.config, "transformer_layers_per_block": 1, "layers_per_block": 1}
        pipe.unet = type(pipe.unet).from_config(config).eval().requires_grad_(False)
    return pipe


def plain_call(pipe: Any, z_t: Tensor, t: Tensor, prompts: list[str]) -> Tensor:
    """The UNet's output as diffusers' own pipeline asks for it."""
    states, _, *pooled = pipe.encode_prompt(
        prompts, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    if not pooled:
        return pipe.unet(z_t, t, encoder_hidden_states=states).sample
    size = tuple(8 * s for s in z_t.shape[-2:])
    width = pipe.text_encoder_2.config.projection_dim
    ids = pipe._get_add_time_ids(size, (0, 0), size, z_t.dtype, text_encoder_projection_dim=width)
    added = {"text_embeds": pooled[0], "time_ids": ids.repeat(len(z_t), 1)}
    return pipe.unet(z_t, t, encoder_hidden_states=states, added_cond_kwargs=added).sample


def assert_plain_numbers(pipe: Any) -> None:
    """DoCo's teacher, x̂0 and both gradients are those of two plain passes through diffusers."""
    batch = batch_of(pipe, PROMPTS)
    schedule = pipe.scheduler.alphas_cumprod
    kind = pipe.scheduler.config.prediction_type
    doco: Any = make_method(pipe, "doco")
    (g_u, g_r, _), metrics = doco.gradients(batch)
    signal = schedule[batch["timesteps"][0]].sqrt()[:, None, None, None]
    sigma = (1 - schedule[batch["timesteps"][0]]).sqrt()[:, None, None, None]
    latents, noise = batch["latents"][0], batch["noise"][0]
    z_t = signal * latents + sigma * noise
    for weight in doco.weights:
        weight.requires_grad_(True)
    t = batch["timesteps"][0]
    fake, kept = (plain_call(pipe, z_t[[i]], t[[i]], [PROMPTS[i]]) for i in range(2))
    with torch.no_grad():
        taught = plain_call(pipe, z_t[:1], t[:1], PROMPTS[1:])
    torch.testing.assert_close(doco.teacher_outputs(batch)[:, 0], taught)
    if kind == "epsilon":
        seen, target = (z_t[:1] - sigma[:1] * fake) / signal[:1], noise[1:]
    else:
        seen = signal[:1] * z_t[:1] - sigma[:1] * fake
        target = signal[1:] * noise[1:] - sigma[1:] * latents[1:]
    logits = doco.discriminator(seen)
    unlearn = F.binary_cross_entropy_with_logits(logits, torch.zeros_like(logits))
    relearn = F.mse_loss(kept, target)
    torch.testing.assert_close(metrics["loss/unlearn"], unlearn.detach())
    torch.testing.assert_close(metrics["loss/relearn"], relearn.detach())
    for ours, loss in ((g_u, unlearn), (g_r, relearn)):
        expected = torch.autograd.grad(loss, doco.weights)
        scale = max(float(g.abs().max()) for g in expected)
        for a, b in zip(ours, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * scale)


@pytest.mark.parametrize("name", [SD14, SD21, SDXL])
def test_a_step_is_that_of_plain_diffusers_calls(name: str) -> None:
    assert_plain_numbers(small(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", [SD14, SD21, SDXL])
def test_a_step_at_full_width_is_that_of_plain_diffusers_calls(name: str) -> None:
    """One layer a block, and two of the text encoders, each as wide as published."""
    pipe = load_pipeline(name, random_weights=True, width=0.05, image_size=64)
    with torch.device("meta"):
        networks = PUBLISHED[name].build_networks(1.0, 64)
    torch.manual_seed(0)
    shallow = {"layers_per_block": 1, "transformer_layers_per_block": 1}
    unet = type(pipe.unet).from_config({**networks.pop("unet").config, **shallow})
    networks.pop("vae")
    pipe.unet = unet.eval()
    for part, network in networks.items():
        config = network.config
        config.num_hidden_layers = 2
        setattr(pipe, part, type(network)(config).eval())
    assert pipe.unet.config.block_out_channels[0] == 320
    assert_plain_numbers(pipe)


def test_a_text_is_packed_and_taken_apart() -> None:
    unet = small(SDXL).unet
    states, pooled = torch.randn(2, 77, 96), torch.randn(2, 60)
    for own, part in zip(
        unpack_text(unet, pack_text(states, pooled)), (states, pooled), strict=True
    ):
        assert torch.equal(own, part)
    assert torch.equal(pack_text(states), states)


def test_sdxl_guides_away_from_zeros_and_other_models_from_the_empty_prompt() -> None:
    xl, sd = small(SDXL), small(SD14)
    negative = sd.encode_prompt("a dog", "cpu", 1, True)[1]
    assert torch.equal(unconditional_text(sd), negative)
    states, pooled = unpack_text(xl.unet, unconditional_text(xl))
    _, negative, _, negative_pooled = xl.encode_prompt("a dog", device="cpu")
    assert torch.equal(states, negative)
    assert torch.equal(pooled, negative_pooled)
    assert token_states(xl, PROMPTS).shape == (2, 77, xl.unet.config.cross_attention_dim)


def test_the_pooled_state_tells_prompts_apart() -> None:
    pipe = small(SDXL)
    _, pooled = unpack_text(pipe.unet, encode_prompts(pipe, PROMPTS))
    assert not torch.allclose(pooled[0], pooled[1], atol=1e-3)


@pytest.mark.parametrize(("name", "most"), [(SD14, 32), (SD21, 14), (SDXL, 8)])
def test_larger_images_are_drawn_fewer_at_once(name: str, most: int) -> None:
    config = SimpleNamespace(sample_size=PUBLISHED[name].image_size // 8)
    pipe: Any = SimpleNamespace(unet=SimpleNamespace(config=config), vae_scale_factor=8)
    assert default_batch_size(pipe) == most


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_sdxl_and_its_weights_load(method: str, tmp_path: Path) -> None:
    """One batch's loss or solve, weights saved, and what they draw in a fresh pipeline."""
    pipe, concept = small(SDXL), make_concept("panda", "bear")
    few = {"num_inference_steps": 2} if method in ("esd", "spm") else {}
    module: Any = make_method(pipe, method, **few)
    module.prepare(pipe, concept)
    batch = batch_of(pipe, PROMPTS)
    if hasattr(module, "gradients"):
        gradients = module.gradients(batch)[0].unlearn
    elif module.closed_form:
        gradients = []
    else:
        loss = module.loss(batch)
        gradients = torch.autograd.grad(loss, module.weights, materialize_grads=True)
    assert all(g.isfinite().all() for g in gradients)
    assert not gradients or any(g.abs().max() > 0 for g in gradients)
    with torch.no_grad():
        for weight, gradient in zip(module.weights, gradients, strict=False):
            weight -= 0.1 * gradient / (gradient.norm() + 1e-12)
    path = tmp_path / "unlearned.safetensors"
    metadata = {"method": method}
    if module.at_inference:
        metadata["at_inference"] = json.dumps(module.at_inference)
    save_unlearned(module.trained_weights, path, metadata)
    fresh = load_unlearned(small(SDXL), path)
    image = generate(fresh, ["a panda"], [0], Sampler(2, guidance_scale=6.0, batch_size=1))
    assert image.shape == (1, 3, 64, 64)


def draw(pipe: DiffusionPipeline, **options: Any) -> Tensor:
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    return pipe(
        ["a panda"], num_inference_steps=2, guidance_scale=6.0, generator=generator,
        output_type="pt", **options,
    ).images  # fmt: skip


def test_a_negative_prompt_and_sld_act_on_sdxl() -> None:
    expected = draw(small(SDXL), negative_prompt=["bear, dog"])
    pipe = small(SDXL)
    METHODS["negative_prompt"].install(pipe, {}, {"text": "bear, dog"})
    assert torch.equal(draw(pipe), expected)
    pipe = small(SDXL)
    options = {
        "text": "bear", "scale": 1000.0, "warmup_steps": 0, "threshold": 0.01,
        "momentum_scale": 0.3, "momentum_decay": 0.4,
    }  # fmt: skip
    METHODS["sld"].install(pipe, {}, options)
    assert not torch.equal(draw(pipe), draw(small(SDXL)))
    pipe = small(SDXL)
    METHODS["sld"].install(pipe, {}, {**options, "warmup_steps": 9})
    torch.testing.assert_close(draw(pipe), draw(small(SDXL)))


@pytest.mark.parametrize("name", [SD21, SDXL])
def test_training_data_are_the_base_model_s_images_and_texts(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unlearn.generation.sampling.default_batch_size", lambda pipe: 2)
    pipe, concept = small(name), make_concept("panda", "bear")
    options = DataOptions(
        images=2, relearn_images=2, num_inference_steps=1, flip=False, rescale=False
    )
    data = make_training_data(pipe, concept, options, Sampler(1, guidance_scale=6.0), seed=0)
    assert data.anchor.mean.shape == (2, 4, 8, 8)
    rows = 77 + (name == SDXL)
    assert data.target_states.shape[-2:] == (rows, pipe.unet.config.cross_attention_dim)


def test_sdxl_s_second_text_encoder_comes_with_a_folder_and_a_lora(tmp_path: Path) -> None:
    other, layer = small(SDXL), "encoder.layers.0.self_attn.q_proj"
    weights = dict(other.text_encoder_2.named_parameters())
    [name] = [n for n in weights if n.endswith(f"{layer}.weight")]
    base = weights[name].clone()
    weights[name].data += 1
    other.save_pretrained(tmp_path / "folder")
    size = len(base)
    ones = {"lora_down.weight": torch.ones(1, size), "lora_up.weight": torch.ones(size, 1)}
    kohya = f"lora_te2_text_model_{layer.replace('.', '_')}"
    save_file({f"{kohya}.{part}": w for part, w in ones.items()}, tmp_path / "lora.safetensors")
    for path in ("folder", "lora.safetensors"):
        pipe: Any = load_weights(small(SDXL), tmp_path / path)
        torch.testing.assert_close(pipe.text_encoder_2.get_parameter(name), base + 1)
