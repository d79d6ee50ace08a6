"""LoRA and SPM files, written by hand: merged, or installed with a strength for each prompt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.helpers.weights import NAME, TERMS, assert_refused, base_of, draw, weights_of
from unlearn.methods.spm import Membrane, strengths
from unlearn.models.pipeline import load_pipeline
from unlearn.weights.delta import named_weights
from unlearn.weights.importing import load_weights

Pairs = dict[str, tuple[Tensor, Tensor]]  # by module name: the down and the up factor
FLAT = f"lora_unet_{NAME.replace('.', '_')}"


@pytest.fixture
def pipe(random_model: Path) -> StableDiffusionPipeline:
    torch.manual_seed(0)
    return load_pipeline(str(random_model))


def lora_change(pipe: StableDiffusionPipeline, rank: int) -> Pairs:
    """By module name of the UNet: random factors of some linear layers and a convolution."""
    generator, factors = torch.Generator().manual_seed(2), {}
    layers = dict(pipe.unet.named_modules())
    for name in (NAME, f"{TERMS}.ff.net.0.proj", "down_blocks.1.attentions.0.proj_in"):
        shape = layers[name].weight.shape
        down = 0.3 * torch.randn(rank, *shape[1:], generator=generator)
        up = torch.randn(shape[0], rank, *[1] * (len(shape) - 2), generator=generator)
        factors[name] = down, up
    return factors


def add_change(layer: nn.Module, down: Tensor, up: Tensor, scale: float) -> None:
    """The layer plus scale times the path through both factors, checked on a random input."""
    if isinstance(layer, nn.Conv2d):
        change = torch.einsum("or,rihw->oihw", up[:, :, 0, 0], down)
        inputs = torch.randn(2, layer.in_channels, 5, 5)
        paths = nn.functional.conv2d(nn.functional.conv2d(inputs, down), up)
    else:
        change = torch.einsum("or,ri->oi", up, down)
        inputs = torch.randn(2, down.shape[1])
        paths = inputs @ down.T @ up.T
    expected = layer(inputs) + scale * paths
    layer.weight.data += scale * change
    torch.testing.assert_close(layer(inputs), expected, atol=1e-3, rtol=1e-3)


def lora_file(kind: str, factors: Pairs, text: Pairs) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata, of rank 3 with alpha 2 (kohya), 6 (diffusers), or without (older)."""
    tensors: dict[str, Tensor] = {}
    if kind == "kohya":
        named = {f"lora_unet_{n.replace('.', '_')}": f for n, f in factors.items()}
        named |= {f"lora_te_text_model_{n.replace('.', '_')}": f for n, f in text.items()}
        ends = ("lora_down", "lora_up")
        tensors = {f"{name}.alpha": torch.tensor(2.0) for name in named}
    else:
        named = {f"unet.{n}": f for n, f in factors.items()}
        named |= {f"text_encoder.text_model.{n}": f for n, f in text.items()}
        ends = ("lora_A", "lora_B") if kind == "diffusers" else ("lora.down", "lora.up")
    for name, pair in named.items():
        tensors |= {f"{name}.{end}.weight": f for end, f in zip(ends, pair, strict=True)}
    alphas = {"unet.lora_alpha": 6, "unet.r": 3, "text_encoder.lora_alpha": 6}
    return tensors, {"lora_adapter_metadata": json.dumps(alphas)} if kind == "diffusers" else {}


@pytest.mark.parametrize(("kind", "alpha"), [("kohya", 2), ("diffusers", 6), ("older", 3)])
def test_a_lora_is_merged_with_alpha_over_rank(
    pipe: StableDiffusionPipeline, random_model: Path, tmp_path: Path, kind: str, alpha: int
) -> None:
    factors, expected = lora_change(pipe, 3), load_pipeline(str(random_model))
    text = {"encoder.layers.0.self_attn.q_proj": (torch.randn(3, 32), torch.randn(32, 3))}
    tensors, metadata = lora_file(kind, factors, text)
    save_file(tensors, tmp_path / "lora.safetensors", metadata)
    with torch.no_grad():
        for name, pair in factors.items():
            add_change(expected.unet.get_submodule(name), *pair, alpha / 3)
        for name, pair in text.items():
            layers = expected.text_encoder.named_modules()
            add_change(next(m for n, m in layers if n.endswith(name)), *pair, alpha / 3)
    names, before = weights_of(pipe).keys(), draw(pipe)
    load_weights(pipe, tmp_path / "lora.safetensors")
    assert weights_of(pipe).keys() == names  # merged: an ordinary network
    torch.testing.assert_close(draw(pipe), draw(expected), atol=1e-3, rtol=0)
    assert (draw(pipe) - before).abs().max() > 0.01


def spm_tensors(pipe: StableDiffusionPipeline, alpha: float = 1.0) -> dict[str, Tensor]:
    tensors = {}
    for name, (down, up) in lora_change(pipe, 1).items():
        flat = f"lora_unet_{name.replace('.', '_')}"
        tensors |= {f"{flat}.lora_down.weight": down, f"{flat}.lora_up.weight": up}
        tensors[f"{flat}.alpha"] = torch.tensor(alpha)
    return tensors


def test_an_spm_acts_by_the_likeness_of_the_prompt(
    pipe: StableDiffusionPipeline, random_model: Path, tmp_path: Path
) -> None:
    stored = {"prompts": "panda,bear", "rank": "1", "alpha": "0.5"}
    save_file(spm_tensors(pipe, 0.5), tmp_path / "spm.safetensors", stored)
    factors = lora_change(pipe, 1)
    load_weights(pipe, tmp_path / "spm.safetensors")
    for prompt in ("a panda", "a fox"):
        expected = load_pipeline(str(random_model))
        strength = strengths(expected, [prompt], ["panda", "bear"]).item()
        assert (strength == 1) == (prompt == "a panda")
        with torch.no_grad():
            for name, pair in factors.items():
                add_change(expected.unet.get_submodule(name), *pair, 0.5 * strength)
        torch.testing.assert_close(draw(pipe, prompt), draw(expected, prompt), atol=1e-3, rtol=0)
    membranes = {n: m for n, m in pipe.unet.named_modules() if isinstance(m, Membrane)}
    idle = [n for n, m in membranes.items() if not m.up.any()]
    assert len(idle) == len(membranes) - len(factors)  # layers that the file does not name


def test_an_spm_needs_targets_from_somewhere(
    random_model: Path, pipe: StableDiffusionPipeline, tmp_path: Path
) -> None:
    path = tmp_path / "spm.safetensors"
    tensors = spm_tensors(pipe)
    conv = {"down": torch.ones(1, 4, 3, 3), "up": torch.ones(16, 1, 1, 1)}
    outside = {f"lora_unet_conv_in.lora_{side}.weight": w for side, w in conv.items()}
    save_file({**tensors, **outside}, path)
    assert_refused(random_model, path, r"unet\.conv_in lies outside of the layers", "panda")
    save_file(tensors, path)
    assert_refused(random_model, path, "an SPM whose file does not say what it forgets")
    load_weights(pipe, path, ["fox"])
    draw(pipe, "a fox")
    assert all(m.strength.eq(1).all() for m in pipe.unet.modules() if isinstance(m, Membrane))


def test_a_lora_of_rank_1_trained_by_kohya_is_no_spm(
    pipe: StableDiffusionPipeline, tmp_path: Path
) -> None:
    save_file(spm_tensors(pipe), tmp_path / "l.safetensors", {"ss_network_dim": "1"})
    load_weights(pipe, tmp_path / "l.safetensors", ["panda"])
    assert not any(isinstance(m, Membrane) for m in pipe.unet.modules())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_unet_nowhere.lora_down.weight": torch.ones(1, 2)}, "lora_unet_nowhere.* is not a"),
        ({f"{FLAT}.hada_w1_a": torch.ones(2)}, "hada_w1_a is not a low-rank factor"),
        ({f"{FLAT}.lora_down.weight": None}, "lacks its factor 'down'"),
        ({f"{FLAT}.lora_down.weight": torch.ones(1, 7)}, r"shape \(1, 7\) and .* another base"),
        ({f"{FLAT}.lora_down.weight": torch.ones(2, 32)}, "made for another base model"),
        ({f"{FLAT}.lora_down.weight": torch.tensor(1.0)}, "made for another base model"),
        ({f"{FLAT}.alpha": torch.ones(2)}, "made for another base model"),
        ({f"{FLAT}.lora_up.weight": torch.full((32, 1), torch.nan)}, "not finite"),
    ],
)
def test_low_rank_factors_that_do_not_fit_are_refused(
    random_model: Path, tmp_path: Path, changes: dict[str, Tensor | None], message: str
) -> None:
    tensors = {
        n: w
        for n, w in {**spm_tensors(base_of(random_model)[0]), **changes}.items()
        if w is not None
    }
    save_file(tensors, tmp_path / "spm.safetensors", {"prompts": "panda"})
    assert_refused(
        random_model, tmp_path / "spm.safetensors", f"^{tmp_path}/spm.safetensors: .*{message}"
    )


def test_alphas_of_layers_of_their_own_are_read(
    pipe: StableDiffusionPipeline, random_model: Path, tmp_path: Path
) -> None:
    """Keys fit names or their ends, as in PEFT; what none fits has the part's alpha."""
    names = [NAME, f"{TERMS}.attn2.to_v"], "encoder.layers.0.self_attn.q_proj"
    factors = {f"unet.{n}": lora_change(pipe, 3)[NAME] for n in names[0]}
    factors[f"text_encoder.text_model.{names[1]}"] = torch.randn(3, 32), torch.randn(32, 3)
    tensors = {
        f"{n}.lora_{e}.weight": f
        for n, ab in factors.items()
        for e, f in zip("AB", ab, strict=True)
    }
    stored = {
        "unet.lora_alpha": 3,
        "unet.alpha_pattern": {"attn2.to_k": 6},
        "text_encoder.r": 3,
    }
    stored["text_encoder.alpha_pattern"] = {f"text_model.{names[1]}": 12}
    save_file(tensors, tmp_path / "l.safetensors", {"lora_adapter_metadata": json.dumps(stored)})
    before = {n: w.clone() for n, w in named_weights(pipe).items()}
    after = named_weights(load_weights(pipe, tmp_path / "l.safetensors"))
    for (name, (down, up)), scale in zip(factors.items(), (2, 1, 4), strict=True):
        key = f"{name.replace('text_model.', '')}.weight"
        torch.testing.assert_close(after[key], before[key] + scale * up @ down)


def test_a_lora_with_another_scale_is_refused(random_model: Path, tmp_path: Path) -> None:
    tensors = {
        f"unet.{NAME}.lora_A.weight": torch.ones(2, 32),
        f"unet.{NAME}.lora_B.weight": torch.ones(32, 2),
    }
    stored = {"unet.lora_alpha": 2, "unet.use_dora": True}
    metadata = {"lora_adapter_metadata": json.dumps(stored)}
    save_file(tensors, tmp_path / "lora.safetensors", metadata)
    assert_refused(
        random_model, tmp_path / "lora.safetensors", "a LoRA with use_dora is not supported"
    )
    metadata = {"lora_adapter_metadata": json.dumps({"unet.alpha_pattern": {"to_k(": 2}})}
    save_file(tensors, tmp_path / "lora.safetensors", metadata)
    assert_refused(
        random_model, tmp_path / "lora.safetensors", r"'to_k\(' is no layer's name; a regular exp"
    )
