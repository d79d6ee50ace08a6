"""LoRA files as each program names them: merged, they are what diffusers itself applies."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from peft import (
    LoraConfig,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
)
from safetensors.torch import save_file
from torch import Tensor

from tests.helpers.weights import TERMS, Malicious, assert_refused
from unlearn.config.evaluation import parse_evaluation
from unlearn.models.pipeline import load_pipeline
from unlearn.weights.delta import named_weights
from unlearn.weights.importing import load_weights

Write = Callable[[dict[str, Tensor], Path], Path]
SDXL = "stabilityai/stable-diffusion-xl-base-1.0"
TEXT = "encoder.layers.0.self_attn"
FLAT = TERMS.replace(".", "_")
# by the name of each program, before the factor: the layer of the random model
KOHYA = {
    f"lora_unet_{FLAT}_attn2_to_k": f"unet.{TERMS}.attn2.to_k",
    f"lora_unet_{FLAT}_attn1_to_out_0": f"unet.{TERMS}.attn1.to_out.0",
    f"lora_unet_{FLAT}_ff_net_0_proj": f"unet.{TERMS}.ff.net.0.proj",
    "lora_unet_down_blocks_1_attentions_0_proj_in": "unet.down_blocks.1.attentions.0.proj_in",
    "lora_unet_mid_block_resnets_1_conv2": "unet.mid_block.resnets.1.conv2",
    "lora_unet_mid_block_resnets_0_time_emb_proj": "unet.mid_block.resnets.0.time_emb_proj",
    "lora_te_text_model_encoder_layers_0_self_attn_q_proj": f"text_encoder.{TEXT}.q_proj",
    "lora_te_text_model_encoder_layers_0_self_attn_out_proj": f"text_encoder.{TEXT}.out_proj",
    "lora_te_text_model_encoder_layers_1_mlp_fc2": "text_encoder.encoder.layers.1.mlp.fc2",
}
# sd-scripts trains SDXL in the original Stable Diffusion's names
SDXL_KOHYA = {
    "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k":
        "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k",
    "lora_unet_input_blocks_8_1_proj_in": "unet.down_blocks.2.attentions.1.proj_in",
    "lora_unet_middle_block_1_transformer_blocks_9_ff_net_2":
        "unet.mid_block.attentions.0.transformer_blocks.9.ff.net.2",
    "lora_unet_output_blocks_2_1_transformer_blocks_3_attn1_to_out_0":
        "unet.up_blocks.0.attentions.2.transformer_blocks.3.attn1.to_out.0",
    "lora_unet_output_blocks_5_1_proj_out": "unet.up_blocks.1.attentions.2.proj_out",
    "lora_unet_input_blocks_1_0_in_layers_2": "unet.down_blocks.0.resnets.0.conv1",
    "lora_unet_middle_block_2_out_layers_3": "unet.mid_block.resnets.1.conv2",
    "lora_unet_input_blocks_4_0_emb_layers_1": "unet.down_blocks.1.resnets.0.time_emb_proj",
    "lora_unet_output_blocks_0_0_skip_connection": "unet.up_blocks.0.resnets.0.conv_shortcut",
    "lora_unet_input_blocks_3_0_op": "unet.down_blocks.0.downsamplers.0.conv",
    "lora_unet_output_blocks_2_2_conv": "unet.up_blocks.0.upsamplers.0.conv",
    "lora_te1_text_model_encoder_layers_3_mlp_fc1": "text_encoder.encoder.layers.3.mlp.fc1",
    "lora_te2_text_model_encoder_layers_31_self_attn_out_proj":
        "text_encoder_2.encoder.layers.31.self_attn.out_proj",
}  # fmt: skip


def named_factors(pipe: DiffusionPipeline, names: dict[str, str], down: str, up: str) -> Any:
    """Random factors of rank 3 of the layers, under the names and the two endings."""
    own, generator, tensors = named_weights(pipe), torch.Generator().manual_seed(5), {}
    for name, layer in names.items():
        shape = own[f"{layer}.weight"].shape
        sides = (3, *shape[1:]), (shape[0], 3, *[1] * (len(shape) - 2))
        for end, size in zip((down, up), sides, strict=True):
            tensors[f"{name}{end}"] = 0.2 * torch.randn(size, generator=generator)
    return tensors


def assert_as_diffusers_applies(
    make: Callable[[], DiffusionPipeline], path: Path, layers: set[str], given: Any = None
) -> None:
    """Exactly those layers have changed, to what diffusers' own loader and PEFT make of them."""
    base = {n: w.clone() for n, w in named_weights(make()).items()}
    merged = named_weights(load_weights(make(), path))
    expected = make()
    expected.load_lora_weights(path if given is None else given)
    expected.fuse_lora([p for p in ("unet", "text_encoder", "text_encoder_2")
                        if hasattr(expected, p)])  # fmt: skip
    expected.unload_lora_weights()
    there = named_weights(expected)
    assert {n for n, w in merged.items() if not torch.equal(w, base[n])} == {
        f"{layer}.weight" for layer in layers
    }
    for name, weight in merged.items():
        torch.testing.assert_close(weight, there[name], rtol=0, atol=1e-6)


@pytest.fixture
def make(random_model: Path) -> Callable[[], StableDiffusionPipeline]:
    return lambda: load_pipeline(str(random_model))


def as_file(tensors: dict[str, Tensor], folder: Path) -> Path:
    save_file(tensors, folder / "lora.safetensors")
    return folder / "lora.safetensors"


def as_pickle(tensors: dict[str, Tensor], folder: Path) -> Path:
    torch.save(tensors, folder / "lora.bin")
    return folder / "lora.bin"


def as_folder(tensors: dict[str, Tensor], folder: Path) -> Path:
    save_file(tensors, folder / "pytorch_lora_weights.safetensors")
    return folder


def as_pickle_folder(tensors: dict[str, Tensor], folder: Path) -> Path:
    torch.save(tensors, folder / "pytorch_lora_weights.bin")
    return folder


WRITERS = [as_file, as_pickle, as_folder, as_pickle_folder]


@pytest.mark.parametrize("write", WRITERS)
def test_kohya_names(make: Any, tmp_path: Path, write: Write) -> None:
    tensors = named_factors(make(), KOHYA, ".lora_down.weight", ".lora_up.weight")
    tensors |= {f"{name}.alpha": torch.tensor(1.5) for name in KOHYA}
    path = write(tensors, tmp_path)
    assert_as_diffusers_applies(make, path, set(KOHYA.values()), dict(tensors))


OLD = {  # of diffusers, until 0.19 and until 0.23, with the endings of their factors
    "to_k_lora": (
        {f"unet.{TERMS}.attn2.processor.to_k_lora": f"unet.{TERMS}.attn2.to_k",
         f"unet.{TERMS}.attn1.processor.to_out_lora": f"unet.{TERMS}.attn1.to_out.0",
         f"text_encoder.text_model.{TEXT}.to_v_lora": f"text_encoder.{TEXT}.v_proj",
         f"text_encoder.text_model.{TEXT}.to_out_lora": f"text_encoder.{TEXT}.out_proj"},
        (".down.weight", ".up.weight"),
    ),
    "lora_linear_layer": (
        {f"text_encoder.text_model.{TEXT}.q_proj.lora_linear_layer": f"text_encoder.{TEXT}.q_proj",
         "text_encoder.text_model.encoder.layers.1.mlp.fc1.lora_linear_layer":
            "text_encoder.encoder.layers.1.mlp.fc1"},
        (".down.weight", ".up.weight"),
    ),
    "lora.down": (
        {f"unet.{TERMS}.attn2.to_v.lora": f"unet.{TERMS}.attn2.to_v",
         f"unet.{TERMS}.ff.net.2.lora": f"unet.{TERMS}.ff.net.2",
         "unet.mid_block.resnets.0.conv1.lora": "unet.mid_block.resnets.0.conv1"},
        (".down.weight", ".up.weight"),
    ),
    "lora_A": (
        {f"unet.{TERMS}.attn2.to_v": f"unet.{TERMS}.attn2.to_v",
         "unet.down_blocks.1.attentions.0.proj_out": "unet.down_blocks.1.attentions.0.proj_out"},
        (".lora_A.weight", ".lora_B.weight"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("write", [as_file, as_pickle_folder])
@pytest.mark.parametrize("kind", OLD)
def test_names_of_every_version_of_diffusers(
    make: Any, tmp_path: Path, kind: str, write: Write
) -> None:
    names, ends = OLD[kind]
    tensors = named_factors(make(), names, *ends)
    path = write(tensors, tmp_path)
    assert_as_diffusers_applies(make, path, set(names.values()), dict(tensors))


def test_names_of_attention_processors_alone_are_the_unet_s(make: Any, tmp_path: Path) -> None:
    """`save_attn_procs` wrote no part of the pipeline in front."""
    names, ends = OLD["to_k_lora"]
    unet = {name: layer for name, layer in names.items() if name.startswith("unet.")}
    tensors = named_factors(make(), unet, *ends)
    path = as_pickle({n.removeprefix("unet."): t for n, t in tensors.items()}, tmp_path)
    assert_as_diffusers_applies(make, path, set(unet.values()), dict(tensors))


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [None, 2.0])
def test_sdxl_in_the_names_of_sd_scripts(tmp_path: Path, alpha: float | None) -> None:
    def make() -> DiffusionPipeline:
        return load_pipeline(SDXL, random_weights=True, width=0.05, image_size=64)

    tensors = named_factors(make(), SDXL_KOHYA, ".lora_down.weight", ".lora_up.weight")
    if alpha is not None:
        tensors |= {f"{name}.alpha": torch.tensor(alpha) for name in SDXL_KOHYA}
    path = tmp_path / "lora.safetensors"
    save_file(tensors, path, {"ss_base_model_version": "sdxl_base_v1-0"})
    assert_as_diffusers_applies(make, path, set(SDXL_KOHYA.values()), dict(tensors))


def peft_config(**options: Any) -> LoraConfig:
    return LoraConfig(r=4, lora_alpha=6, init_lora_weights=False, **options)


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize(
    "options",
    [{}, {"use_rslora": True}, {"alpha_pattern": {"attn2.to_k": 12}, "rank_pattern": {"to_v": 2}}],
)
def test_a_folder_of_peft_s_save_pretrained(
    make: Any, tmp_path: Path, safe: bool, options: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    pipe = make()
    config = peft_config(target_modules=["attn2.to_k", "attn2.to_v", "conv1"], **options)
    model = get_peft_model(pipe.unet, config)
    model.save_pretrained(tmp_path, safe_serialization=safe)
    expected = {n: w for n, w in model.merge_and_unload().named_parameters() if "lora" not in n}
    base = named_weights(make())
    (file,) = tmp_path.glob("adapter_model.*")
    for path in (tmp_path, file):
        merged = named_weights(load_weights(make(), path))
        assert sum(not torch.equal(w, base[n]) for n, w in merged.items()) > 8
        for name, weight in expected.items():
            torch.testing.assert_close(merged[f"unet.{name}"], weight, rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_peft_s_folders_of_several_parts(make: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    pipe = make()
    for part, targets in (("unet", ["to_q"]), ("text_encoder", ["q_proj", "fc1"])):
        model = get_peft_model(getattr(pipe, part), peft_config(target_modules=targets))
        model.save_pretrained(tmp_path / part)
        setattr(pipe, part, model.merge_and_unload())
    merged, expected = named_weights(load_weights(make(), tmp_path)), named_weights(pipe)
    base = named_weights(make())
    assert {n.partition(".")[0] for n, w in merged.items() if not torch.equal(w, base[n])} == {
        "unet", "text_encoder"
    }  # fmt: skip
    for name, weight in merged.items():
        torch.testing.assert_close(weight, expected[name], rtol=0, atol=1e-6)
    model = get_peft_model(make().text_encoder, peft_config(target_modules=["v_proj"]))
    model.save_pretrained(tmp_path / "alone")  # which part it is, the layers say
    changed = named_weights(load_weights(make(), tmp_path / "alone"))
    assert all(
        n.endswith("v_proj.weight") for n, w in changed.items() if not torch.equal(w, base[n])
    )


@pytest.mark.parametrize("safe", [True, False])
def test_a_folder_of_diffusers_save_lora_weights(make: Any, tmp_path: Path, safe: bool) -> None:
    torch.manual_seed(0)
    pipe, layers = make(), {}
    metadata = {}
    for part, targets in (("unet", ["attn2.to_k", "proj_in"]), ("text_encoder", ["q_proj"])):
        config = peft_config(target_modules=targets)
        inject_adapter_in_model(config, getattr(pipe, part))
        layers[f"{part}_lora_layers"] = get_peft_model_state_dict(
            getattr(pipe, part), adapter_name="default"
        )
        metadata[f"{part}_lora_adapter_metadata"] = {
            k: sorted(v) if isinstance(v, set) else v for k, v in config.to_dict().items()
        }
    if not safe:
        metadata = {}  # a pickle has none, and alpha is taken for the rank
    pipe.save_lora_weights(tmp_path, safe_serialization=safe, **layers, **metadata)
    changed = {
        n.replace("text_model.", "").partition(".lora_A")[0]
        for n in (f"{p[:-12]}.{k}" for p, part in layers.items() for k in part)
        if ".lora_A" in n
    }
    assert_as_diffusers_applies(make, tmp_path, changed)


def test_a_lora_s_folder_is_evaluated_as_weights_from_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "l" / "unet").mkdir(parents=True)
    (tmp_path / "l" / "unet" / "adapter_model.safetensors").touch()
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "pytorch_lora_weights.bin").touch()
    for name in ("l", "m"):
        request = parse_evaluation(tmp_path / name, ["concept=panda"])
        assert request.external_weights == tmp_path / name


NAME = f"unet.{TERMS}.attn2.to_k"
FITS = {f"{NAME}.lora_A.weight": torch.ones(2, 32), f"{NAME}.lora_B.weight": torch.ones(32, 2)}


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({"unet.alpha_pattern": {"(a+)+$": 2}}, r"'\(a\+\)\+\$' is no layer's name; a regular"),
        ({"unet.alpha_pattern": {".*to_k": 2}}, "is no layer's name; a regular expression of a"),
        ({"unet.alpha_pattern": {"a" * 200 + "*": 2}}, "regular expression of a file is not run"),
        ({"unet.alpha_pattern": 3}, "alpha_pattern=3: Input should be a valid dict"),
        ({"unet.lora_alpha": "x"}, "lora_alpha='x': Input should be a valid number"),
        ({"unet.lora_alpha": [1]}, r"lora_alpha=\[1\]: Input"),
        ({"unet.lora_alpha": float("inf")}, "not finite"),
        ({"unet.use_dora": True}, "a LoRA with use_dora is not supported"),
        ({"unet.init_lora_weights": "pissa_niter_4"}, "'pissa_niter_4' changed the base model"),
        ([1], "lora_adapter_metadata: Input should be"),
        ("[" * 5000, "lora_adapter_metadata: "),
        ("{", "lora_adapter_metadata: Invalid JSON"),
    ],
)
def test_metadata_that_is_hostile_or_not_supported_is_refused(
    random_model: Path, tmp_path: Path, stored: Any, message: str
) -> None:
    text = stored if isinstance(stored, str) else json.dumps(stored)
    save_file(FITS, tmp_path / "l.safetensors", {"lora_adapter_metadata": text})
    assert_refused(random_model, tmp_path / "l.safetensors", f"^{tmp_path}/l.*: .*{message}")


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"ss_base_model_version": "sdxl_base_v1-0"}, "this pipeline is a StableDiffusionPipeline"),
        ({"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}, "modelspec.architecture"),
        ({"ss_base_model_version": "sd3m"}, "ss_base_model_version='sd3m'"),
        ({"ss_v_parameterization": "True"}, "prediction_type is 'epsilon'; model.prediction_type"),
        ({"modelspec.prediction_type": "v"}, "modelspec.prediction_type='v'"),
    ],
)
def test_metadata_that_names_another_base_is_refused(
    random_model: Path, tmp_path: Path, metadata: dict[str, str], message: str
) -> None:
    save_file(FITS, tmp_path / "l.safetensors", metadata)
    assert_refused(random_model, tmp_path / "l.safetensors", message)


@pytest.mark.parametrize("named", ["emoji", "CompVis/stable-diffusion-v1-4", "random:{base}"])
def test_our_own_metadata_that_names_another_base_is_refused(
    make: Any, tmp_path: Path, named: str
) -> None:
    """Of what `unlearn export` and a run write, moved out of the run's folder."""
    base = "models/mine"
    named = named.format(base=base)
    weights = {f"{NAME}.weight": torch.ones(32, 32)}
    for tensors in (weights, FITS):
        save_file(tensors, tmp_path / "w.safetensors", {"base": named})
        with pytest.raises(ValueError, match=f"made for the base model '{named}'; .*'{base}'"):
            load_weights(make(), tmp_path / "w.safetensors", base=base)
        copy = named if named.startswith("random:") else f"copies/{named.rpartition('/')[2]}"
        load_weights(make(), tmp_path / "w.safetensors", base=copy)


def test_metadata_that_names_this_base_passes(make: Any, tmp_path: Path) -> None:
    metadata = {"ss_base_model_version": "sd_v1", "ss_v_parameterization": "False"}
    metadata["modelspec.architecture"] = "stable-diffusion-v1/lora"
    save_file(FITS, tmp_path / "l.safetensors", metadata)
    load_weights(make(), tmp_path / "l.safetensors")


def test_peft_s_files_that_do_not_say_enough_are_refused(
    random_model: Path, tmp_path: Path
) -> None:
    file, config = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    save_file({f"base_model.model.{n.removeprefix('unet.')}": t for n, t in FITS.items()}, file)
    assert_refused(random_model, tmp_path, r"adapter_config\.json: damaged \(FileNotFoundError")
    for content, message in (
        ("{", "adapter_config.json: .*Invalid JSON"),
        ("[]", "adapter_config.json: .*Input should be"),
        ("{}", "peft_type=None: 'LORA' is needed"),
        ('{"peft_type": "LOHA"}', "peft_type='LOHA'"),
        ('{"peft_type": "LORA", "lora_alpha": {}}', r"lora_alpha=\{\}: Input should"),
    ):
        config.write_text(content)
        assert_refused(random_model, tmp_path, message)
    config.write_text('{"peft_type": "LORA"}')
    save_file({"base_model.model.nowhere.lora_A.weight": torch.ones(1, 2)}, file)
    assert_refused(random_model, tmp_path, "its layers are those of no part of this pipeline")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({f"{NAME}.lora_A.weight": 3}, "lora_A.weight is a int, not a tensor"),
        ({**FITS, 4: torch.ones(2)}, "4 is not a low-rank factor"),
        ({**FITS, f"{NAME}.lora_magnitude_vector": torch.ones(32)}, "magnitude_vector is not a"),
        ({**FITS, f"{NAME}.lora.down.weight": torch.ones(2, 32)}, "is a second factor 'down'"),
        ({"lora_unet_input_blocks_x_1.lora_down.weight": torch.ones(2, 32)}, "input_blocks_x_1"),
        ({"lora_unet_.alpha": torch.ones(1)}, "is not a low-rank factor"),
    ],
)
def test_pickles_that_are_no_lora_are_refused(
    random_model: Path, tmp_path: Path, content: Any, message: str
) -> None:
    torch.save(content, tmp_path / "lora.bin")
    assert_refused(random_model, tmp_path / "lora.bin", f"^{tmp_path}/lora.bin: .*{message}")


def test_code_in_a_lora_s_pickle_is_not_run(random_model: Path, tmp_path: Path) -> None:
    torch.save({**FITS, "x": Malicious(tmp_path / "trap")}, tmp_path / "pytorch_lora_weights.bin")
    assert_refused(random_model, tmp_path, "can be code, and is never run")
    assert not (tmp_path / "trap").exists()
