"""Forget-Me-Not: its attention maps against a manual softmax, its loss written out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers.models.attention_processor import Attention

from tests.conftest import ALPHAS, make_concept
from tests.helpers.methods import make_batch
from unlearn.concepts.prompts import training_pairs
from unlearn.methods.forget_me_not import (
    ForgetMeNot,
    ForgetMeNotOptions,
    attention_maps,
    token_positions,
)
from unlearn.models.noise_schedule import NoiseSchedule
from unlearn.models.pipeline import load_pipeline


def test_the_maps_are_the_softmax_of_queries_and_keys(random_model: Path) -> None:
    unet, batch = load_pipeline(str(random_model)).unet, make_batch()
    args = (batch["latents"][:, 0], batch["timesteps"][:, 0], batch["states"][:, 0])
    layers = [m for m in unet.modules() if isinstance(m, Attention) and m.is_cross_attention]
    queries: list[tuple[Attention, torch.Tensor]] = []  # in the order of the forward pass
    hooks = [
        m.to_q.register_forward_hook(lambda *a, layer=m: queries.append((layer, a[2])))
        for m in layers
    ]
    with torch.no_grad():
        plain = unet(*args).sample
        queries.clear()
        with attention_maps(unet) as maps:
            torch.testing.assert_close(unet(*args).sample, plain)
        assert len(maps) == len(layers)
        for (layer, query), found in zip(queries, maps, strict=True):
            q, k = (x.unflatten(-1, (layer.heads, -1)) for x in (query, layer.to_k(args[2])))
            scores = torch.einsum("bihd,bjhd->bhij", q, k) / q.shape[-1] ** 0.5
            torch.testing.assert_close(found, scores.softmax(-1).flatten(0, 1))
        torch.testing.assert_close(unet(*args).sample, plain)  # its own processors again
    assert "get_attention_scores" not in vars(layers[0])
    for hook in hooks:
        hook.remove()


def test_the_loss_is_the_mean_norm_at_the_target_s_tokens(random_model: Path) -> None:
    pipe, concept = load_pipeline(str(random_model)), make_concept("panda", "bear")
    method = ForgetMeNot(
        pipe.unet, NoiseSchedule.from_scheduler(pipe.scheduler), ForgetMeNotOptions()
    )
    method.prepare(pipe, concept)
    batch = make_batch()
    batch["pair"] = torch.tensor([0, 2, 1])
    t = batch["timesteps"][:, 0]
    alpha = ALPHAS[t][:, None, None, None]
    z_t = alpha.sqrt() * batch["latents"][:, 0] + (1 - alpha).sqrt() * batch["noise"][:, 0]
    expected = torch.zeros(3)
    with torch.no_grad(), attention_maps(pipe.unet) as maps:
        pipe.unet(z_t, t, batch["states"][:, 0])
    for found in maps:
        heads = found.unflatten(0, (3, -1))
        for i, pair in enumerate(batch["pair"].tolist()):
            expected[i] += heads[i][..., method.positions[pair]].square().sum()
    torch.testing.assert_close(method.loss(batch).detach(), expected.sqrt().mean())
    # what lies behind the last cross-attention plays no part, and gets a zero gradient
    gradients = torch.autograd.grad(method.loss(batch), method.weights, materialize_grads=True)
    by_name = dict(zip(method.trained_weights, gradients, strict=True))
    assert by_name["conv_out.weight"].abs().max() == 0
    assert by_name["conv_in.weight"].abs().max() > 0


def test_the_target_s_tokens_are_found_in_every_prompt(random_model: Path) -> None:
    pipe, concept = load_pipeline(str(random_model)), make_concept("panda", "bear")
    for _, prompt in training_pairs(concept):
        flags = token_positions(pipe, concept.targets, prompt)
        ids = torch.tensor(pipe.tokenizer(prompt).input_ids)
        words = pipe.tokenizer.decode(ids[flags[: len(ids)]]).split()
        assert words == ["panda"]
    with pytest.raises(ValueError, match=r"'a fox' holds none of \['panda'\]"):
        token_positions(pipe, ["panda"], "a fox")
