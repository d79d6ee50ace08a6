"""Weights from elsewhere: each format, written by hand, gives the pipeline that it describes."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import CustomDiffusionAttnProcessor
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.unit.weights.test_delta import weights_of
from unlearn.models.pipeline import load_pipeline
from unlearn.weights.delta import save_unlearned
from unlearn.weights.importing import load_weights

KEYS_VALUES = ("attn2.to_k.weight", "attn2.to_v.weight")
TERMS = "down_blocks.1.attentions.0.transformer_blocks.0"
NAME = f"{TERMS}.attn2.to_k"
FITS = {f"{NAME}.weight": torch.ones(32, 32)}


@pytest.fixture
def pipe(random_model: Path) -> StableDiffusionPipeline:
    return load_pipeline(str(random_model))


def draw(pipe: StableDiffusionPipeline, prompt: str = "a panda") -> Tensor:
    pipe.set_progress_bar_config(disable=True)
    noise = torch.Generator().manual_seed(0)
    return pipe(prompt, num_inference_steps=2, output_type="pt", generator=noise).images


def changed(folder: Path, *endings: str) -> tuple[StableDiffusionPipeline, dict[str, Tensor]]:
    """A pipeline whose UNet's weights of those endings were set by hand, and those weights."""
    pipe = load_pipeline(str(folder))
    generator, weights = torch.Generator().manual_seed(1), {}
    for name, weight in pipe.unet.named_parameters():
        if name.endswith(endings):
            weight.data = weight + 0.3 * torch.randn(weight.shape, generator=generator)
            weights[name] = weight.data.clone()
    assert weights
    return pipe, weights


def state_of(pipe: StableDiffusionPipeline) -> dict[str, Tensor]:
    """A copy of all that loading may change."""
    state = {**weights_of(pipe), "words": torch.tensor(len(pipe.tokenizer))}
    return state | {f"text.{n}": w.clone() for n, w in pipe.text_encoder.state_dict().items()}


@cache
def base_of(folder: Path) -> tuple[StableDiffusionPipeline, dict[str, Tensor]]:
    """A pipeline that only refused files are loaded into, and its state."""
    pipe = load_pipeline(str(folder))
    return pipe, state_of(pipe)


def assert_refused(folder: Path, path: Path, message: str, *targets: str) -> None:
    """By the pipeline of `folder`, with that message; nothing of it has changed."""
    pipe, state = base_of(folder)
    with pytest.raises(ValueError, match=message):
        load_weights(pipe, path, list(targets))
    after = state_of(pipe)
    assert after.keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in after.items())


def as_run(weights: dict[str, Tensor], folder: Path) -> Path:
    save_unlearned(weights, folder / "unlearned.safetensors", {"method": "doco"})
    return folder


def as_doco(weights: dict[str, Tensor], folder: Path) -> Path:
    """The reference's file: parameters, so with gradients, of which a clone was taken."""
    path = folder / "delta.bin"
    torch.save({"unet": {n: nn.Parameter(w).clone() for n, w in weights.items()}}, path)
    return path


def as_custom_diffusion(weights: dict[str, Tensor], folder: Path) -> Path:
    """diffusers' file: attention processors, those without weights as empty dictionaries."""
    path = folder / "pytorch_custom_diffusion_weights.bin"
    content: dict[str, Any] = {f"{TERMS}.attn1.processor": {}}
    for name, weight in weights.items():
        parent, _, rest = name.partition(".to_")
        side, _, end = rest.partition(".")
        content[f"{parent}.processor.to_{side}_custom_diffusion.{end}"] = weight
    torch.save(content, path)
    return path


def as_esd(weights: dict[str, Tensor], folder: Path) -> Path:
    """ESD's file: names of the UNet's own parameters."""
    save_file(weights, folder / "esd-van_gogh.safetensors")
    return folder / "esd-van_gogh.safetensors"


def as_state_dict(weights: dict[str, Tensor], folder: Path) -> Path:
    torch.save(weights, folder / "unet.pt")
    return folder / "unet.pt"


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


class Malicious:
    """Unpickled, it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


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
        assert_refused(random_model, nothing, "no file, run directory, or diffusers folder")
