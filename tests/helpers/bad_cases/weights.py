"""Weights that are damaged, lying, hostile, or of another model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file

from tests.helpers.bad_input import Case, files
from tests.helpers.weights import Malicious
from unlearn.weights.delta import save_unlearned, write_safetensors

LAYER = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
NAME = f"unet.{LAYER}.weight"
FITS = torch.ones(32, 32)


class Bad(NamedTuple):
    """A bad file of weights: its name, how to write it there, and the message after its path."""

    name: str
    write: Callable[[Path], Any]
    message: str


def tensors(name: str, message: str, metadata: dict[str, str] | None = None, **given: Any) -> Bad:
    """A whole file of one tensor beside one that fits; `weight` and `called` spoil it."""
    content = {NAME: FITS, given.get("called", NAME): given.get("weight", FITS).clone()}
    return Bad(name, lambda path: save_file(content, path, metadata), message)


def raw(name: str, header: Any, data: bytes, length: int | None = None) -> Bad:
    """A file of bytes: the length of its header, the header, and what follows."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = (len(text) if length is None else length).to_bytes(8, "little")
    return Bad(name, lambda path: path.write_bytes(size + text + data), "not a whole safetensors")


def entry(end: int, start: int = 0) -> dict[str, Any]:
    """A header's entry of two floats."""
    return {"dtype": "F32", "shape": [2], "data_offsets": [start, end]}


def acting(name: str, message: str, method: str, options: str) -> Bad:
    """A file whose metadata says that a method acts at inference."""
    metadata = {"method": method, "at_inference": options}
    return Bad(name, lambda path: write_safetensors({}, path, metadata), message)


NONE = torch.full((32, 32), torch.nan)
FILES = [
    Bad("absent", lambda path: None, "not a whole safetensors file: No such file"),
    Bad("a folder", Path.mkdir, "not a whole safetensors file"),
    Bad("a link to itself", lambda path: path.symlink_to(path), "not a whole safetensors file"),
    Bad("empty", Path.touch, "not a whole safetensors file"),
    Bad("text", lambda path: path.write_text("weights"), "not a whole safetensors file"),
    Bad("a pickle", lambda p: torch.save({NAME: FITS}, p), "not a whole safetensors file"),
    Bad("no tensors", lambda path: save_file({}, path), "holds no weights"),
    raw("more bytes declared than there are", {NAME: entry(8)}, b"\0" * 4),
    raw("bytes after the last tensor", {NAME: entry(8)}, b"\0" * 12),
    raw("overlapping tensors", {NAME: entry(8), "unet.b": entry(12, 4)}, b"\0" * 12),
    raw("offsets that run backwards", {NAME: entry(0, 8)}, b"\0" * 8),
    raw("a header of 2**60 bytes", {NAME: entry(8)}, b"\0" * 8, 2**60),
    raw("a header cut short", {NAME: entry(8)}, b"\0" * 8, 10),
    raw("a header that is no UTF-8", b"\xff\xfe{}", b""),
    tensors("a name of no weight", "unet.nowhere is not a weight", called="unet.nowhere"),
    tensors("a path as a name", "unet/../../x is not a weight", called="unet/../../x"),
    tensors("another base's shape", "has shape .*made for another base model", weight=FITS[:8]),
    tensors("NaN", rf"{LAYER}\.weight holds values that are not finite", weight=NONE),
    tensors("infinity", "holds values that are not finite", weight=FITS * torch.inf),
    tensors("infinite in fp32", "not finite", weight=FITS.double() * 1e300),
    tensors("whole numbers", r"is of torch\.int64, .*allowed are dense", weight=FITS.long()),
    tensors("complex numbers", r"is of torch\.complex64", weight=FITS.to(torch.complex64)),
    tensors("8-bit floats", r"is of torch\.float8_e4m3fn", weight=FITS.to(torch.float8_e4m3fn)),
    acting("an unknown method", r"method='spn' is unknown; .*'spm'", "spn", "{}"),
    acting("a method of weights alone", "method='doco' is unknown", "doco", '{"text": "x"}'),
    acting("options that are no JSON", "at_inference is no dictionary", "sld", "{"),
    acting("options that are a list", "at_inference is no dictionary", "sld", "[1]"),
    acting("options of another type", r"negative_prompt needs \['text'\]", "negative_prompt",
           '{"text": 5}'),
    acting("options that are missing", "sld needs .*'momentum_decay'", "sld", '{"text": "x"}'),
    acting("an SPM without its factors", r"\.down: the file's shape is None", "spm",
           '{"targets": ["panda"]}'),
]  # fmt: skip


def spoil(change: Callable[[dict[str, torch.Tensor], Path], Any]) -> Callable[[Path], None]:
    """The run's weights, changed."""

    def write(work: Path) -> None:
        path = work / "run" / "unlearned.safetensors"
        change(load_file(path), path)

    return write


def half(work: Path) -> None:
    """The run's weights, cut in two."""
    path = work / "run" / "unlearned.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def trap(work: Path) -> None:
    """A pickle with code in it."""
    torch.save({"unet": {f"{LAYER}.weight": FITS}, "x": Malicious(work / "trap")}, work / "d.bin")


def code_in_parts(work: Path) -> None:
    """A pipeline's folder, one of whose parts is of a module beside it."""
    parts = {"_class_name": "StableDiffusionPipeline", "unet": ["own_code", "Network"]}
    folder = work / "model" / "unet"
    folder.mkdir(parents=True)
    (work / "model" / "model_index.json").write_text(json.dumps(parts))
    (folder / "own_code.py").write_text(f"import os; os.mkdir({str(work / 'trap')!r})")


def judge(work: Path) -> None:
    """A judge whose weights are none."""
    files(judge__config_dot_json="{}", judge__model_dot_safetensors="x")(work)


FOREIGN = ["concept=panda", "evaluation=coco30k", "evaluation.sha256=null", "evaluation.clip=emoji"]
FOREIGN += ["evaluation.prompts_file=own.csv", "model.pretrained={model}"]
PROMPTS = files(own_dot_csv="prompt\na dog\n")


def foreign(write: Callable[[Path], Any], message: str) -> Case:
    """A file of weights from elsewhere, d.bin, in a published protocol."""

    def prepare(work: Path) -> None:
        PROMPTS(work)
        write(work)

    return Case(["evaluate", "d.bin", *FOREIGN], message, prepare, loads=True)


def finished(write: Callable[[Path], Any], message: str, loads: bool = True) -> Case:
    """A run directory, whose four prompt sets are evaluated again."""
    return Case(["evaluate", "run", "evaluation.judge=none"], message, write, loads)


CASES = [
    finished(half, r"unlearned\.safetensors: not a whole safetensors file", loads=False),
    finished(
        spoil(lambda w, p: save_file({n: t * torch.nan for n, t in w.items()}, p)), "not finite"
    ),
    finished(
        spoil(lambda w, p: save_unlearned({"x": FITS}, p, {})), r"unet\.x is not a weight of this"
    ),
    finished(
        spoil(lambda w, p: save_file(w, p, {"base": "elsewhere"})),
        r"made for the base model 'elsewhere'; its config\.yaml says",
        loads=False,
    ),
    foreign(trap, r"d\.bin: not a PyTorch file of plain tensors; .*never run"),
    foreign(lambda work: (work / "d.bin").touch(), r"d\.bin: not a PyTorch file of plain tensors"),
    foreign(
        lambda work: torch.save([FITS], work / "d.bin"), r"d\.bin: holds a list, not named weights"
    ),
    foreign(
        lambda work: torch.save({"unet": {f"{LAYER}.weight": FITS.to_sparse()}}, work / "d.bin"),
        r"is of torch\.float32, torch\.sparse_coo",
    ),
    foreign(
        lambda work: torch.save(
            {"unet": {f"{LAYER}.weight": FITS}, "modifier_token": {3: torch.ones(32)}},
            work / "d.bin",
        ),
        r"modifier_token 3 is no word",
    ),
    Case(
        ["train", "concept=panda", "model.pretrained=model"],
        r"its unet is of 'own_code', which is not imported: it may be any code",
        code_in_parts,
        True,
    ),
    foreign(
        lambda work: torch.save(
            {"lora_unet_input_blocks_99_1_proj_in.alpha": FITS}, work / "d.bin"
        ),
        r"d\.bin: .* is not a low-rank factor of a layer of this pipeline",
    ),
    foreign(
        lambda work: torch.save({f"base_model.model.{LAYER}.lora_A.weight": FITS}, work / "d.bin"),
        r"adapter_config\.json: damaged",
    ),
    Case(
        [
            "train",
            "concept=panda",
            "model.pretrained={model}",
            "+model.vae=x",
        ],
        r"model\.vae='x': cannot be loaded",
        loads=True,
    ),
    Case(
        ["train", "concept=panda", "model.pretrained={model}", "+model.variant=fp16"],
        r"model\.variant='fp16': .* holds no such weights; .*null",
        loads=True,
    ),
    Case(
        ["train", "concept=panda", "model.pretrained={model}", "+model.prediction_type=sample"],
        r"model\.prediction_type='sample' is unknown; .*epsilon",
    ),
    Case(
        ["train", "concept=panda", "model.pretrained=model"],
        r"model_index\.json: unet=\[\]: a library and a class are needed",
        files(
            model__model_index_dot_json='{"_class_name": "StableDiffusionPipeline", "unet": []}',
            model__scheduler__scheduler_config_dot_json="{}",
        ),
        True,
    ),
    Case(
        ["train", "concept=panda", "model.pretrained=model"],
        r"scheduler_config\.json: a scheduler 'EDMEulerScheduler', whose .* known are ",
        files(
            model__model_index_dot_json=json.dumps(
                {
                    "_class_name": "StableDiffusionPipeline",
                    "scheduler": ["diffusers", "EDMEulerScheduler"],
                }
            ),
            model__scheduler__scheduler_config_dot_json="{}",
        ),
        True,
    ),
    Case(
        ["train", "concept=panda", "model.pretrained=model"],
        r"model_index\.json is damaged",
        files(model__model_index_dot_json="{"),
        True,
    ),
    Case(
        ["train", "concept=panda", "model.pretrained=d.ckpt", "+model.config={model}"],
        r"model\.pretrained='d\.ckpt': cannot be loaded",
        lambda work: (trap(work), (work / "d.bin").rename(work / "d.ckpt")),
        True,
    ),
    Case(
        ["train", "concept=panda", "evaluation.judge=judge"],
        r"evaluation\.judge='judge': not a whole judge",
        judge,
    ),
]
