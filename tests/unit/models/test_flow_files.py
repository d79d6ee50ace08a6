"""Stable Diffusion 3 on disk: stored folders, exports, and weights that come back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from safetensors.torch import save_file
from torch import Tensor

from tests.helpers.bad_input import write_config
from tests.helpers.compvis import vae_name
from tests.helpers.flow import PROMPTS, WITHOUT_T5, draw_one, small
from tests.helpers.ranked_runs import RESULT
from unlearn.config.saved import load_run_config
from unlearn.exports.formats import ExportOptions, export_as
from unlearn.exports.merge import MergeOptions, merge_runs
from unlearn.models.cross_attention import cross_attention_layers
from unlearn.models.pipeline import get_denoiser, load_pipeline, pipeline_networks
from unlearn.models.text_states import encode_prompts
from unlearn.training.run import load_earlier_weights
from unlearn.weights.delta import load_unlearned, save_unlearned
from unlearn.weights.importing import load_weights

ENDS = {
    "pos_embed.pos_embed": "pos_embed", "pos_embed.proj": "x_embedder.proj",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "context_embedder": "context_embedder", "proj_out": "final_layer.linear",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
}  # fmt: skip
BLOCK = {
    "norm1.linear": "x_block.adaLN_modulation.1",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
    "ff.net.0.proj": "x_block.mlp.fc1", "ff.net.2": "x_block.mlp.fc2",
    "ff_context.net.0.proj": "context_block.mlp.fc1", "ff_context.net.2": "context_block.mlp.fc2",
    "attn.to_out.0": "x_block.attn.proj", "attn.to_add_out": "context_block.attn.proj",
}  # fmt: skip
QKV = {"x_block": ("to_q", "to_k", "to_v"), "context_block": tuple(f"add_{x}_proj" for x in "qkv")}


def transformer_weights(transformer: Any) -> dict[str, Tensor]:
    """The weights under the names that Stability AI gave them, in a transformer of two blocks."""
    own = transformer.state_dict()
    swapped = [n for n in own if n.startswith(("norm_out.", "transformer_blocks.1.norm1_context."))]
    for name in swapped:  # diffusers has shift and scale the other way round there
        own[name] = torch.cat(own[name].chunk(2)[::-1])
    weights = {}
    for end in ("", ".weight", ".bias"):
        pairs = {f"{ours}{end}": f"{theirs}{end}" for ours, theirs in ENDS.items()}
        for i in (0, 1):
            block, theirs = f"transformer_blocks.{i}.", f"joint_blocks.{i}."
            pairs |= {f"{block}{a}{end}": f"{theirs}{b}{end}" for a, b in BLOCK.items()}
            for half, parts in QKV.items():
                if f"{block}attn.{parts[0]}{end}" in own:
                    joined = torch.cat([own.pop(f"{block}attn.{part}{end}") for part in parts])
                    weights[f"{theirs}{half}.attn.qkv{end}"] = joined
        weights |= {b: own.pop(a) for a, b in pairs.items() if a in own}
    assert not own
    return {f"model.diffusion_model.{name}": weight for name, weight in weights.items()}


def in_own_memory(pipe: Any) -> Any:
    """The pipeline, no weight of which is where safetensors has mapped it in a file.

    There it may begin at any multiple of four bytes, on which depends how a product rounds.
    """
    for network in pipeline_networks(pipe).values():
        for weight in network.parameters():
            weight.data = weight.data.clone()
    return pipe


def test_a_single_file_is_the_pipeline_that_it_was_made_of(folder: Path, tmp_path: Path) -> None:
    pipe = load_pipeline(str(folder))
    encoders = {"clip_l": pipe.text_encoder, "clip_g": pipe.text_encoder_2}
    encoders["clip_l"].text_projection.weight.copy_(
        torch.eye(len(encoders["clip_l"].text_projection.weight))
    )
    weights = transformer_weights(pipe.transformer)
    for name, weight in pipe.vae.state_dict().items():
        weights[vae_name(name, len(pipe.vae.config.block_out_channels) - 1)] = weight
    for encoder, network in encoders.items():
        for name, weight in network.state_dict().items():
            weights[f"text_encoders.{encoder}.transformer.{name}"] = weight
    save_file({name: w.contiguous() for name, w in weights.items()}, tmp_path / "sd3.safetensors")
    loaded = load_pipeline(str(tmp_path / "sd3.safetensors"), config=str(folder))
    for name, network in pipeline_networks(pipe).items():
        own, other = network.state_dict(), pipeline_networks(loaded)[name].state_dict()
        assert own.keys() == other.keys()
        assert [key for key in own if not torch.equal(own[key], other[key])] == []
    assert torch.equal(draw_one(in_own_memory(loaded)), draw_one(in_own_memory(pipe)))


@pytest.mark.parametrize("t5", [False, True])
def test_a_stored_folder_is_loaded_with_what_it_has(t5: bool, tmp_path: Path) -> None:
    pipe = small(t5)
    pipe.save_pretrained(tmp_path)
    loaded: Any = load_pipeline(str(tmp_path))
    assert (loaded.text_encoder_3 is not None) == t5
    assert torch.equal(encode_prompts(loaded, PROMPTS), encode_prompts(pipe, PROMPTS))
    assert torch.equal(draw_one(in_own_memory(loaded)), draw_one(in_own_memory(pipe)))


def make_run(base: Path, out: Path) -> tuple[Path, dict[str, Tensor]]:
    """A finished run that changed every weight that trains, and those weights."""
    out.mkdir()
    write_config(out, "concept=snoopy", "model=sd3", f"model.pretrained={base}")
    (out / "result.json").write_text(json.dumps(RESULT))
    (out / "before_after.png").touch()
    generator, changed = torch.Generator().manual_seed(0), {}
    for name, layer in cross_attention_layers(get_denoiser(load_pipeline(str(base)))).items():
        noise = torch.randn(layer.weight.shape, generator=generator)
        changed[f"{name}.weight"] = layer.weight + 0.3 * noise[:, :1] @ noise[:1]
    metadata = {"base": str(base), "method": "doco"}
    save_unlearned(changed, out / "unlearned.safetensors", metadata, "transformer")
    return out, changed


def test_exports_hold_the_weights(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    run, changed = make_run(folder, tmp_path / "run")
    config = load_run_config(run)
    plain = StableDiffusion3Pipeline.from_pretrained(folder, **WITHOUT_T5)
    expected = draw_one(load_unlearned(plain, run / "unlearned.safetensors"))
    export_as(config, tmp_path / "whole", ExportOptions())
    card = (tmp_path / "whole" / "README.md").read_text()
    assert 'PATH_OF_THIS_FOLDER", text_encoder_3=None, tokenizer_3=None)' in card
    whole = StableDiffusion3Pipeline.from_pretrained(tmp_path / "whole", **WITHOUT_T5)
    assert torch.equal(draw_one(whole), expected)
    export_as(config, tmp_path / "o.bin", ExportOptions(format="delta"))
    delta = torch.load(tmp_path / "o.bin", weights_only=True)
    assert delta.keys() == {"transformer"}
    assert delta["transformer"].keys() == changed.keys()
    export_as(config, tmp_path / "o.safetensors", ExportOptions(format="lora", error=1e-4))
    lora = StableDiffusion3Pipeline.from_pretrained(folder, **WITHOUT_T5)
    lora.load_lora_weights(tmp_path / "o.safetensors")
    torch.testing.assert_close(draw_one(lora), expected, atol=1e-3, rtol=0)
    whole.transformer.save_pretrained(tmp_path / "network")
    for name in ("o.bin", "o.safetensors", "whole", "network", "run"):
        loaded: Any = load_weights(load_pipeline(str(folder)), tmp_path / name)
        for key, weight in changed.items():
            own = loaded.transformer.state_dict()[key]
            torch.testing.assert_close(own, weight, atol=1e-3 if "o.s" in name else 0, rtol=0)
    with pytest.raises(ValueError, match=r"format='kohya': names a UNet's layers alone"):
        export_as(config, tmp_path / "k.safetensors", ExportOptions(format="kohya"))


def test_a_transformer_s_weights_are_refused_by_a_unet(
    folder: Path, random_model: Path, tmp_path: Path
) -> None:
    run, _ = make_run(folder, tmp_path / "run")
    with pytest.raises(ValueError, match=r"transformer\.\S+ is not a weight of this pipeline"):
        load_weights(load_pipeline(str(random_model)), run)
    with pytest.raises(ValueError, match=r"no config\.json of a unet"):
        load_weights(load_pipeline(str(random_model)), folder)


def test_runs_are_merged_and_gone_on_from(folder: Path, tmp_path: Path) -> None:
    (first, changed), (second, _) = (make_run(folder, tmp_path / name) for name in ("a", "b"))
    write_config(second, "concept=r2d2", "model=sd3", f"model.pretrained={folder}")
    merged = merge_runs([first, second], tmp_path / "both", MergeOptions(scale=0.5))
    pipe: Any = load_pipeline(str(folder))
    assert load_earlier_weights(pipe, merged).keys() == changed.keys()
    for name, weight in changed.items():  # half of the same change twice
        torch.testing.assert_close(pipe.transformer.get_parameter(name), weight)
