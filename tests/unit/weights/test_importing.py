"""Weights from elsewhere: each format, written by hand, gives the pipeline that it describes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import CustomDiffusionAttnProcessor
from safetensors.torch import save_file
from torch import Tensor

from tests.helpers.weights import (
    FITS,
    KEYS_VALUES,
    NAME,
    Malicious,
    as_custom_diffusion,
    as_doco,
    as_esd,
    as_run,
    as_state_dict,
    assert_refused,
    base_of,
    changed,
    draw,
    weights_of,
)
from unlearn.models.pipeline import load_pipeline
from unlearn.weights.importing import load_weights


@pytest.fixture
def pipe(random_model: Path) -> StableDiffusionPipeline:
    return load_pipeline(str(random_model))


@pytest.mark.parametrize(
    ("write", "endings"),
    [
        (as_run, KEYS_VALUES),
        (as_doco, KEYS_VALUES),
        (as_custom_diffusion, (*KEYS_VALUES, "attn2.to_q.weight", "attn2.to_out.0.bias")),
        (as_esd, ("attn2.to_q.weight", "attn2.to_out.0.bias", "proj_in.weight")),
        (as_state_dict, ("weight", "bias")),
    ],
)
def test_changed_weights_give_the_unet_that_they_were_taken_from(
    pipe: StableDiffusionPipeline,
    random_model: Path,
    tmp_path: Path,
    write: Callable[[dict[str, Tensor], Path], Path],
    endings: tuple[str, ...],
) -> None:
    expected, weights = changed(random_model, *endings)
    before = draw(pipe)
    assert load_weights(pipe, write(weights, tmp_path)) is pipe
    assert torch.equal(draw(pipe), draw(expected))
    assert not torch.allclose(draw(pipe), before)
    there = weights_of(expected)
    assert all(torch.equal(w, there[n]) for n, w in weights_of(pipe).items())


def test_diffusers_own_custom_diffusion_file_draws_as_diffusers_does(
    pipe: StableDiffusionPipeline, random_model: Path, tmp_path: Path
) -> None:
    """Its own processors, and its own writer."""
    expected = load_pipeline(str(random_model))
    torch.manual_seed(3)
    processors = {}
    for name in expected.unet.attn_processors:
        module = expected.unet.get_submodule(name.removesuffix(".processor"))
        if module.is_cross_attention:
            sizes = {"hidden_size": module.inner_dim, "cross_attention_dim": 32}
            processors[name] = CustomDiffusionAttnProcessor(train_q_out=True, **sizes)
        else:
            processors[name] = CustomDiffusionAttnProcessor(train_kv=False, train_q_out=False)
    expected.unet.set_attn_processor(processors)
    expected.unet.save_attn_procs(tmp_path, safe_serialization=False)
    before = draw(pipe)
    load_weights(pipe, tmp_path / "pytorch_custom_diffusion_weights.bin")
    torch.testing.assert_close(draw(pipe), draw(expected), atol=1e-4, rtol=0)
    assert not torch.allclose(draw(pipe), before, atol=1e-2)


def test_a_delta_may_hold_the_text_encoder_and_new_words(
    pipe: StableDiffusionPipeline, random_model: Path, tmp_path: Path
) -> None:
    expected, weights = changed(random_model, "attn2.to_k.weight")
    encoder = {n: w + 0.1 for n, w in expected.text_encoder.state_dict().items() if "norm" in n}
    vector = torch.randn(32)
    content = {
        "unet": weights,
        # the names of transformers 4, with its buffer
        "text_encoder": {
            **{f"text_model.{n.removeprefix('text_model.')}": w for n, w in encoder.items()},
            "text_model.embeddings.position_ids": torch.arange(32)[None],
        },
        "modifier_token": {"<new1>": vector},
    }
    torch.save(content, tmp_path / "delta.bin")
    words = len(pipe.tokenizer)
    load_weights(pipe, tmp_path / "delta.bin")
    expected.text_encoder.load_state_dict(encoder, strict=False)
    assert torch.equal(draw(pipe), draw(expected))
    assert pipe.tokenizer("a <new1>").input_ids[-2] == words == len(pipe.tokenizer) - 1
    table = pipe.text_encoder.get_input_embeddings().weight
    assert torch.equal(table[words], vector)
    assert torch.equal(table[:words], expected.text_encoder.get_input_embeddings().weight)
    assert torch.isfinite(draw(pipe, "a <new1> panda")).all()
    with pytest.raises(ValueError, match="'<new1>' is a word of the tokenizer already"):
        load_weights(pipe, tmp_path / "delta.bin")


@pytest.mark.parametrize("whole", [True, False])
def test_a_diffusers_folder_takes_the_place_of_the_base(
    pipe: StableDiffusionPipeline, random_model: Path, tmp_path: Path, whole: bool
) -> None:
    expected, _ = changed(random_model, "weight")
    if whole:
        for weight in expected.vae.parameters():
            weight.data += 0.05
        expected.save_pretrained(tmp_path)
    else:
        expected.unet.save_pretrained(tmp_path)
    load_weights(pipe, tmp_path)
    assert torch.equal(draw(pipe), draw(expected))
    assert not any(p.requires_grad for p in pipe.unet.parameters())
    assert pipe.components["unet"] is pipe.unet


def test_other_unets_are_refused(random_model: Path, tmp_path: Path) -> None:
    pipe = base_of(random_model)[0]
    for changes, message in (
        ({"cross_attention_dim": 16}, "its cross_attention_dim is 16, this pipeline's is 32"),
        ({"in_channels": 9}, "its in_channels is 9, this pipeline's is 4"),
    ):
        config = {**pipe.unet.config, **changes}
        UNet2DConditionModel.from_config(config).save_pretrained(tmp_path)
        assert_refused(random_model, tmp_path, message)
    pipe.vae.save_pretrained(tmp_path / "vae")
    assert_refused(random_model, tmp_path / "vae", "its _class_name is 'AutoencoderKL'")
    weights = weights_of(pipe)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    pipe.unet.save_pretrained(tmp_path)
    name = f"{NAME}.weight"
    for wrong, message in (
        ({n: w for n, w in weights.items() if n != name}, f"its weights lack {name}"),
        ({**weights, name: weights[name] * torch.nan}, f"unet.{name} holds values that are not"),
        ({**weights, name: weights[name][:4].clone()}, "cannot be loaded"),
    ):
        save_file(wrong, file)
        assert_refused(random_model, tmp_path, message)
    file.write_bytes(file.read_bytes()[:-100])
    assert_refused(random_model, tmp_path, "cannot be loaded")
    file.unlink()
    assert_refused(random_model, tmp_path, "cannot be loaded")


@pytest.mark.parametrize("whole", [True, False])
def test_a_folder_of_one_variant_is_read_as_that_variant(
    pipe: StableDiffusionPipeline, random_model: Path, tmp_path: Path, whole: bool
) -> None:
    expected, _ = changed(random_model, *KEYS_VALUES)
    (expected if whole else expected.unet).save_pretrained(tmp_path, variant="fp16")
    there = weights_of(expected)
    load_weights(pipe, tmp_path)
    assert all(torch.equal(w, there[n]) for n, w in weights_of(pipe).items())


@pytest.mark.parametrize("whole", [True, False])
def test_a_folder_of_pickles_says_how_to_convert(
    pipe: StableDiffusionPipeline, random_model: Path, tmp_path: Path, whole: bool
) -> None:
    (pipe if whole else pipe.unet).save_pretrained(tmp_path, safe_serialization=False)
    kind = "DiffusionPipeline" if whole else "UNet2DConditionModel"
    assert_refused(random_model, tmp_path, f"import {kind} as P; .*then take converted")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"unet": {**FITS, "nowhere.weight": torch.ones(2)}},
            "unet.nowhere.weight is not a weight",
        ),
        ({"unet": {f"{NAME}.weight": torch.ones(2, 2)}}, "made for another base model"),
        ({"unet": {f"{NAME}.weight": torch.full((32, 32), torch.inf)}}, "not finite"),
        ({"unet": {f"{NAME}.weight": {"u": torch.ones(2)}}}, "is a dict, not a tensor"),
        ({"unet": {}}, "holds no weights"),
        ({"unet": FITS, "<new1>": torch.ones(32)}, "'<new1>' is none of the sections"),
        ({"unet": FITS, "modifier_token": {"<n>": torch.ones(3)}}, r"'<n>' has shape \(3,\), this"),
        ({"unet": FITS, "text_encoder": {"x": torch.ones(2)}}, "text_encoder.x is not a weight"),
        (
            {"state_dict": {f"model.diffusion_model.input_blocks.1.{NAME}": torch.ones(2)}},
            "CompVis' names .* turns a whole checkpoint",
        ),
        ([torch.ones(2)], "holds a list, not named weights"),
    ],
)
def test_deltas_that_do_not_fit_are_refused(
    random_model: Path, tmp_path: Path, content: Any, message: str
) -> None:
    torch.save(content, tmp_path / "delta.bin")
    assert_refused(random_model, tmp_path / "delta.bin", f"^{tmp_path}/delta.bin: .*{message}")


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_is_not_run(random_model: Path, tmp_path: Path, zipped: bool) -> None:
    path, trap = tmp_path / "delta.bin", tmp_path / "trap"
    content = {"unet": FITS, "extra": Malicious(trap)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    assert_refused(random_model, path, "can be code, and is never run")
    assert not trap.exists()
    torch.load(path, weights_only=False)
    assert trap.exists()  # so the file was a trap


def test_broken_files_are_refused(random_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "esd.safetensors"
    save_file(FITS, path)
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    lying = whole[8 : 8 + length].replace(b"4096", b"9999")  # the end of the weight's bytes
    assert lying != whole[8 : 8 + length]
    for content in (
        len(lying).to_bytes(8, "little") + lying + whole[8 + length :],
        (2**60).to_bytes(8, "little") + whole[8:],
        whole[:-4],
        b"",
    ):
        path.write_bytes(content)
        assert_refused(random_model, path, "not a whole safetensors file")
    (tmp_path / "delta.bin").write_bytes(b"\x80\x04junk")
    assert_refused(random_model, tmp_path / "delta.bin", "not a PyTorch file of plain tensors")
    for nothing in (tmp_path, tmp_path / "absent.bin"):
        assert_refused(
            random_model, nothing, "no file, run directory, folder of a LoRA, or diffusers folder"
        )
