"""The cost of Table 2: its counts against formulas, and against the methods' own code."""

from __future__ import annotations

import itertools
from statistics import mean
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from experiments.table2 import cost
from experiments.table2.cost import Cost, Evaluation, image, report
from experiments.table2.flops import counted, networks, passes, unet_inputs
from unlearn.config.compose import compose
from unlearn.config.parse import parse_config
from unlearn.methods import negative_guidance
from unlearn.methods.negative_guidance import mean_stop
from unlearn.methods.registry import build_method
from unlearn.models.pipeline import load_pipeline
from unlearn.models.random_weights import SD1

SD14 = "CompVis/stable-diffusion-v1-4"
SMALL = (0.05, 64)


@pytest.mark.slow
def test_the_unet_s_count_is_that_of_its_layers() -> None:
    """2 · inputs · outputs a position for each layer, 4 · queries · keys · width for attention."""
    total = 0

    def layer(module: nn.Module, args: Any, output: torch.Tensor) -> None:
        nonlocal total
        total += 2 * module.weight[0].numel() * output.numel()

    def attention(module: Attention, args: Any, kwargs: Any, output: torch.Tensor) -> None:
        nonlocal total
        states = kwargs.get("encoder_hidden_states")
        keys = (args[0] if states is None else states).shape[1]
        total += 4 * output.shape[1] * keys * module.inner_dim

    with torch.device("meta"):
        unet = SD1.build_unet()
    for module in unet.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.register_forward_hook(layer)
        elif isinstance(module, Attention):
            module.register_forward_hook(attention, with_kwargs=True)
    with torch.device("meta"), torch.no_grad():
        unet(*unet_inputs(unet))
    assert total == networks().unet == passes("uce").forward


def batch_of(pipe: Any, size: int) -> dict[str, torch.Tensor]:
    """A batch as `PairDataset` makes them."""
    config, length = pipe.unet.config, pipe.tokenizer.model_max_length
    shape = (size, 2, config.in_channels, config.sample_size, config.sample_size)
    states = torch.randn(size, 2, length, config.cross_attention_dim)
    return {
        "latents": torch.randn(shape), "noise": torch.randn(shape),
        "timesteps": torch.tensor([[900, 500]] * size), "states": states,
        "teacher_states": states[:, 0], "pair": torch.arange(size), "seed": torch.arange(size),
    }  # fmt: skip


def run_steps(method: Any, batch: dict[str, torch.Tensor], steps: int) -> None:
    """What of a run's steps goes through the networks."""
    for number in range(steps * method.accumulate_grad_batches):
        if hasattr(method, "in_warmup") and method.in_warmup(
            number // method.accumulate_grad_batches
        ):
            method.warmup_gradients(batch)
        elif hasattr(method, "gradients"):
            method.gradients(batch)
        else:
            torch.autograd.grad(method.loss(batch), method.weights, materialize_grads=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        (
            "doco",
            [
                "method.warmup_steps=1",
                "method.discriminator_channels=1",
                "method.accumulate_grad_batches=2",
            ],
        ),
        ("doco_reference", ["method.warmup_steps=0", "method.discriminator_channels=1"]),
        ("regression", ["method.relearn_target=noise"]),
        ("concept_ablation", []),
        ("esd", ["method.num_inference_steps=4"]),
        ("spm", ["method.num_inference_steps=4", "method.accumulate_grad_batches=2"]),
        ("forget_me_not", []),
        ("salun", ["method.mask_batches=1", "method.accumulate_grad_batches=2"]),
    ],
)
def test_a_run_s_count_is_that_of_the_method_s_own_steps(
    name: str, overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = [f"method={name}", *overrides, "steps=2", "batch_size=2"]
    config = parse_config(compose(["concept=snoopy", "model=sd14", *own]))
    pipe = load_pipeline(SD14, random_weights=True, width=SMALL[0], image_size=SMALL[1])
    method = build_method(pipe, name, config.options)
    method.prepare(pipe, config.trained)
    batch = batch_of(pipe, 2)
    if name == "salun":
        loader = SimpleNamespace(train_dataloader=lambda: [batch])
        method._trainer = SimpleNamespace(datamodule=loader, world_size=1)
    monkeypatch.setattr(
        negative_guidance, "mean_stop", lambda batch, steps: steps - 1 - 900 * steps // 1000
    )

    def run() -> None:
        with sdpa_kernel(SDPBackend.MATH):  # the CPU's fused attention is not counted
            method.on_fit_start()
            run_steps(method, batch, 2)

    forward, trained = method.samples(config.options, config.plan)
    size = passes(name, getattr(config.options, "trained", None), *SMALL)
    estimate = forward * size.forward + trained * size.trained
    # Forget-Me-Not's gradient starts at the attention maps, not at the output
    assert counted(run) == pytest.approx(estimate, rel=0.1 if name == "forget_me_not" else 2e-3)


@pytest.mark.slow
def test_the_backward_pass_is_cheaper_the_less_trains() -> None:
    """Keys and values: the gradient of every activation, and of few weights."""
    forward = networks().unet
    keys_and_values, everything = (
        (passes(name).trained - forward) / forward for name in ("doco", "salun")
    )
    assert 1 < keys_and_values < 1.1
    assert 1.9 < everything < 2


@pytest.mark.parametrize(("batch", "steps"), [(1, 5), (3, 4)])
def test_the_mean_stop_is_that_of_all_draws(batch: int, steps: int) -> None:
    draws = itertools.product(range(steps), repeat=batch)
    assert mean_stop(batch, steps) == pytest.approx(mean(max(draw) for draw in draws))


def test_what_acts_at_inference_costs_there() -> None:
    size = networks()
    assert image(30) == 60 * size.unet + size.decode + 2 * size.text
    assert image(30, "sld") - image(30) == 30 * size.unet
    assert image(30, "doco") == image(30) < image(30, "spm") < 1.01 * image(30)


def test_hours_follow_from_the_throughput() -> None:
    rows = {"a": Cost(2, 3.6e15, 7.2e15, 3.6e15), "b": Cost(1, 0, 3.6e15, 0)}
    assert rows["a"].hours(1, 0.5) == (1, 4)
    text = report(rows, tflops=1, tflops_fp32=0.5, devices=2)
    assert "| a | 2 | 1.0 | 4.0 | 5.0 |" in text
    assert "| all | 3 | 1.0 | 5.0 | 6.0 |" in text
    assert "On 2 GPUs: 3.0 hours" in text
    assert "not measured: 1 TFLOP/s" in text


@pytest.mark.slow
def test_the_plan_s_cost_is_its_runs_and_the_base_s_images_once() -> None:
    row = {"seeds": 1, "overrides": ["method=uce"]}
    plan = {
        "targets": ["snoopy", "mickey"],
        "protocols": {"instance": {"name": "spm_general", "prompts": 80}},
        "overrides": ["model=sd14"],
        "rows": {"uce": {"label": "UCE", **row}, "other": {"label": "other", **row}},
    }
    rows = cost.costs(plan)
    assert rows["UCE"] == rows["other"]
    assert rows["UCE"].runs == 2
    assert rows["UCE"].training == 0
    assert rows["UCE"].protocol == 2 * 6 * 80 * 10 * image(31)  # PNDM calls once more than steps
    base = rows[cost.BASE]
    assert base.protocol == rows["UCE"].protocol / 2
    assert base.judging == rows["UCE"].judging
    limited = cost.costs(plan, limit=1)["UCE"]
    assert limited.protocol == 2 * 6 * 10 * image(31)
    trained = {**plan, "rows": {"esd": {**row, "label": "ESD", "overrides": ["method=esd"]}}}
    assert cost.costs(trained)["ESD"].training > 1000 * 8 * 2 * networks().unet
    assert Evaluation(32, 20, "p", 0, 0).cost("sld").judging == 32 * image(20, "sld")
