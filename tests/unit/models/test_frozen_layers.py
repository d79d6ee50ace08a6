"""Weights stored in bf16, activations computed twice, one pair at a time: the same step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.conftest import make_concept
from tests.helpers.methods import make_method
from unlearn.config.compose import compose
from unlearn.config.parse import parse_config
from unlearn.generation.sampling import Sampler, generate
from unlearn.methods.registry import METHODS
from unlearn.models.frozen_layers import FrozenConv2d, drop_frozen_inputs, store_in_bf16
from unlearn.models.pipeline import load_pipeline
from unlearn.models.text_states import encode_prompts

TRAINED = [name for name, method in METHODS.items() if not method.closed_form]


def gradients(
    folder: Path, name: str, stored: bool, gradient_checkpointing: bool, bf16: bool
) -> Any:
    """Those of one batch."""
    torch.manual_seed(0)
    pipe = load_pipeline(str(folder))
    few = {"num_inference_steps": 2} if name in ("esd", "spm") else {}
    method: Any = make_method(pipe, name, **few)
    method.prepare(pipe, make_concept("panda", "bear"))
    with torch.no_grad():  # away from the base, so that teacher and student differ
        for weight in method.weights:
            weight += 0.02 * torch.randn_like(weight)
    if stored:
        store_in_bf16(pipe.unet, method.trained_weights)
    if gradient_checkpointing:
        pipe.unet.enable_gradient_checkpointing()
    texts = encode_prompts(pipe, ["a panda", "a bear"])
    batch = {
        "latents": torch.randn(2, 2, 4, 16, 16),
        "noise": torch.randn(2, 2, 4, 16, 16),
        "timesteps": torch.tensor([[700, 300], [40, 900]]),
        "states": texts.expand(2, -1, -1, -1),
        "teacher_states": texts[1:].expand(2, -1, -1),
        "pair": torch.tensor([0, 0]),
        "seed": torch.tensor([0, 1]),
    }
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        if hasattr(method, "gradients"):
            found, _ = method.gradients(batch)
            return [*found.unlearn, *found.relearn]
        return list(torch.autograd.grad(method.loss(batch), method.weights, allow_unused=True))


def assert_equal(found: list[Tensor | None], expected: list[Tensor | None]) -> None:
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert torch.equal(one, other)
    assert any(g is not None and g.abs().max() > 0 for g in found)


@pytest.mark.parametrize("name", TRAINED)
def test_gradients_are_the_same_bits_with_weights_stored_in_bf16(
    random_model: Path, name: str
) -> None:
    plain = gradients(random_model, name, stored=False, gradient_checkpointing=False, bf16=True)
    assert_equal(gradients(random_model, name, True, False, True), plain)


@pytest.mark.parametrize("name", [name for name in TRAINED if name != "forget_me_not"])
def test_gradients_are_the_same_bits_with_checkpointing(random_model: Path, name: str) -> None:
    plain = gradients(random_model, name, stored=False, gradient_checkpointing=False, bf16=False)
    assert_equal(gradients(random_model, name, False, True, False), plain)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("name", [n for n in TRAINED if n not in ("salun", "forget_me_not")])
def test_gradients_are_the_same_bits_with_convolutions_that_forget_their_inputs(
    random_model: Path, monkeypatch: pytest.MonkeyPatch, name: str, bf16: bool
) -> None:
    frugal = gradients(random_model, name, stored=False, gradient_checkpointing=False, bf16=bf16)
    monkeypatch.setattr("unlearn.methods.base.drop_frozen_inputs", lambda network: None)
    assert_equal(frugal, gradients(random_model, name, False, False, bf16))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"padding": 2, "dilation": 2, "groups": 2}])
def test_a_frozen_convolution_keeps_no_input(options: Any, bias: bool) -> None:
    plain = nn.Conv2d(4, 6, 3, bias=bias, **options).double().requires_grad_(False)
    network = nn.Sequential(plain)
    input = torch.randn(2, 4, 9, 9, dtype=torch.float64, requires_grad=True)
    expected = plain(input)
    (gradient,) = torch.autograd.grad(expected.sin().sum(), input)
    drop_frozen_inputs(network)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        output = network(input)
    assert [t.data_ptr() for t in kept] == [plain.weight.data_ptr()]
    assert torch.equal(output, expected)
    assert torch.equal(torch.autograd.grad(output.sin().sum(), input)[0], gradient)
    assert torch.autograd.gradcheck(network, input)


def test_a_convolution_that_trains_stays_as_it_is() -> None:
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1).requires_grad_(False))
    names = list(network.state_dict())
    drop_frozen_inputs(network)
    assert [type(layer) for layer in network] == [nn.Conv2d, FrozenConv2d]
    assert list(network.state_dict()) == names


def test_what_trains_and_what_autocast_leaves_alone_stay_fp32(random_model: Path) -> None:
    pipe = load_pipeline(str(random_model))
    method = make_method(pipe, "doco")
    before = {n: p.clone() for n, p in pipe.unet.named_parameters()}
    store_in_bf16(pipe.unet, method.trained_weights)
    for name, module in pipe.unet.named_modules():
        for own, weight in module.named_parameters(recurse=False):
            full = f"{name}.{own}"
            cast = isinstance(module, nn.Linear | nn.Conv2d) and full not in method.trained_weights
            assert weight.dtype == (torch.bfloat16 if cast else torch.float32)
            assert torch.equal(weight, before[full].to(weight.dtype))
    assert all(w.dtype == torch.float32 for w in method.weights)


@pytest.mark.slow
def test_images_are_the_same_bits_with_weights_stored_in_bf16(random_model: Path) -> None:
    images = []
    for stored in (False, True):
        pipe = load_pipeline(str(random_model))
        if stored:
            store_in_bf16(pipe.unet, [])
        images.append(generate(pipe, ["a panda", "a fox"], [1, 2], Sampler(3, 6.0, "bf16-mixed")))
    assert torch.equal(*images)


def test_forget_me_not_and_checkpointing_are_refused_together() -> None:
    overrides = ["concept=panda", "method=forget_me_not", "gradient_checkpointing=true"]
    with pytest.raises(
        ValueError,
        match=r"gradient_checkpointing=True: forget_me_not .* gradient_checkpointing=fal",
    ):
        parse_config(compose(overrides))


@pytest.mark.parametrize("preset", ["fast", "low_memory"])
def test_the_presets_make_the_default_step(preset: str) -> None:
    config = parse_config(compose(["concept=panda", f"experiment={preset}"]))
    plain = parse_config(compose(["concept=panda"]))
    assert config.batch_size == plain.batch_size
    assert (config.method, config.options) == (plain.method, plain.options)
    assert config.trainer.precision == "auto"


def test_presets_can_be_combined() -> None:
    chosen = ["concept=snoopy", "model=sd14", "experiment=[paper,low_memory]"]
    config = parse_config(compose(chosen))
    assert (config.options.surgery, config.gradient_checkpointing) == ("gradient", True)
