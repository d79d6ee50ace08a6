"""Load unlearned weights from elsewhere, in the formats that other projects publish."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from unlearn.models.model_files import convert_hint, only_variant
from unlearn.models.pipeline import DENOISERS, denoiser_name, get_denoiser, load_pipeline
from unlearn.weights.adapters import load_adapter
from unlearn.weights.delta import (
    check_base_name,
    check_finite,
    copy_weights,
    load_unlearned,
    read_tensors,
)
from unlearn.weights.lora_names import is_adapter
from unlearn.weights.peft_files import is_peft, peft_files, read_peft

DELTA_SECTIONS = (*DENOISERS, "text_encoder", "modifier_token")  # sections of a delta.bin
# the configuration of a network that must be equal for it to replace another
INTERFACE_KEYS = (
    "_class_name", "cross_attention_dim", "joint_attention_dim", "pooled_projection_dim",
    "in_channels", "out_channels",
)  # fmt: skip
# diffusers' Custom Diffusion keeps its weights in attention processors
CUSTOM_DIFFUSION_NAME = re.compile(r"\.processor\.(to_(?:q|k|v|out))_custom_diffusion\.")
# how weights' names begin in the original Stable Diffusion checkpoints
COMPVIS_PREFIX = "model.diffusion_model."
FOLDER_CONFIGS = ("model_index.json", "config.json")  # of diffusers' folders
LORA_FILES = ("pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin")
WEIGHT_FILES = ("unlearned.safetensors", *LORA_FILES)


def load_weights(
    pipe: DiffusionPipeline,
    path: str | os.PathLike[str],
    targets: list[str] | None = None,
    base: str | None = None,
) -> DiffusionPipeline:
    """Load unlearned weights into the pipeline, in place, and return it.

    The content of the file or folder decides its format:

    - A run directory, or its `unlearned.safetensors`.
    - A diffusers folder of a whole pipeline, or of the UNet or transformer alone, which replaces
      the pipeline's own.
    - Changed weights under the network's own names, as safetensors (ESD) or a pickle. The names may
      be those of diffusers' Custom Diffusion. In the `delta.bin` of DoCo, Concept Ablation and
      Custom Diffusion, the weights stand under "unet" or "transformer", beside "text_encoder" and
      "modifier_token".
    - An SPM, or another LoRA (see `load_adapter`), as safetensors or a pickle, or as the folder
      that diffusers' `save_lora_weights` or PEFT's `save_pretrained` wrote. Of PEFT, the folder may
      hold one such folder for each part of the pipeline.

    Args:
        pipe: the base model.
        path: the file or folder.
        targets: what an SPM forgets, on which its strength depends; None takes the targets that the
            file names.
        base: the base model's name; None: the base model that the file names is not checked.

    Raises:
        ValueError: the format is not known, or its names, shapes or values do not fit the pipeline;
            nothing is changed. Or the file names another base model. A pickle with more than plain
            tensors in it is never run.
    """
    place = Path(path)
    if place.is_dir():
        if any((place / name).exists() for name in FOLDER_CONFIGS):
            return load_folder(pipe, place)
        if files := peft_files(place):
            return load_adapter(pipe, *read_peft(pipe, files), place, targets)
        found = (place / name for name in WEIGHT_FILES if (place / name).is_file())
        place = next(found, place)
    if not place.is_file():
        raise ValueError(
            f"{path}: no file, run directory, folder of a LoRA, or diffusers folder of a pipeline "
            "or its network"
        )
    tensors, metadata = read_tensors(place)
    if base is not None:
        check_base_name(metadata, base, place)
    if is_peft(tensors):
        tensors, metadata = read_peft(pipe, [place])
    if is_adapter(tensors):
        return load_adapter(pipe, tensors, metadata, place, targets)
    if place.suffix == ".safetensors" and all(n.partition(".")[0] in DENOISERS for n in tensors):
        return load_unlearned(pipe, place)
    return load_delta(pipe, tensors, place)


def is_external_folder(folder: Path) -> bool:
    """Tell whether a folder holds weights from elsewhere that `load_weights` may take."""
    names = (*FOLDER_CONFIGS, *LORA_FILES)
    return bool(peft_files(folder)) or any((folder / name).exists() for name in names)


def load_delta(
    pipe: DiffusionPipeline, content: Mapping[str, Any], path: Path
) -> DiffusionPipeline:
    """Load changed weights into the pipeline, in place, and return it.

    Args:
        pipe: the base model.
        content: weights by section (see `DELTA_SECTIONS`), or of the network that denoises alone.
        path: the file, for the message.

    Raises:
        ValueError: the content holds no weights, or ones that do not fit; nothing is changed.
    """
    if isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if any(str(name).startswith(COMPVIS_PREFIX) for name in content):
        raise ValueError(
            f"{path}: holds weights under CompVis' names ({COMPVIS_PREFIX}...); "
            "StableDiffusionPipeline.from_single_file(...).save_pretrained(...) turns a whole "
            "checkpoint of that kind into a diffusers folder, which loads"
        )
    part = denoiser_name(get_denoiser(pipe))
    sectioned = any(isinstance(content.get(name), Mapping) for name in DENOISERS)
    delta = content if sectioned else {part: content}
    for key, value in delta.items():
        if key not in DELTA_SECTIONS or not isinstance(value, Mapping):
            raise ValueError(f"{path}: {key!r} is none of the sections {list(DELTA_SECTIONS)}")
    weights = {}
    for section in DENOISERS:
        for name, value in delta.get(section, {}).items():
            if not (isinstance(value, Mapping) and not value):  # of a processor without weights
                weights[f"{section}." + CUSTOM_DIFFUSION_NAME.sub(r".\1.", str(name))] = value
    for name, value in delta.get("text_encoder", {}).items():
        if not str(name).endswith("position_ids"):  # no weight, and absent in newer versions
            weights["text_encoder." + str(name).removeprefix("text_model.")] = value
    tokens = delta.get("modifier_token", {})
    for name, value in {**weights, **tokens}.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"{path}: {name} is a {type(value).__name__}, not a tensor")
    if not weights:
        raise ValueError(f"{path}: holds no weights")
    check_tokens(pipe, tokens, path)
    copy_weights(pipe, weights, path)
    add_tokens(pipe, tokens)
    return pipe


def check_tokens(pipe: DiffusionPipeline, tokens: Mapping[str, Tensor], path: Path) -> None:
    """Refuse new words that the tokenizer knows already, or whose embeddings do not fit.

    Raises:
        ValueError: a word is refused; the message names it.
    """
    width = pipe.text_encoder.config.hidden_size
    known = pipe.tokenizer.get_vocab()
    for token, embedding in tokens.items():
        if not isinstance(token, str) or not token.strip():
            raise ValueError(f"{path}: modifier_token {token!r} is no word")
        if token in known:
            raise ValueError(f"{path}: modifier_token {token!r} is a word of the tokenizer already")
        if embedding.shape != (width,):
            raise ValueError(
                f"{path}: modifier_token {token!r} has shape {tuple(embedding.shape)}, this "
                f"pipeline's text encoder needs {(width,)}"
            )
    check_finite(tokens, path)


def add_tokens(pipe: DiffusionPipeline, tokens: Mapping[str, Tensor]) -> None:
    """Add new words to the tokenizer, and their embeddings to the text encoder."""
    if not tokens:
        return
    pipe.tokenizer.add_tokens(list(tokens))
    pipe.text_encoder.resize_token_embeddings(len(pipe.tokenizer), mean_resizing=False)
    table = pipe.text_encoder.get_input_embeddings().weight.requires_grad_(False)
    for token, embedding in tokens.items():
        table[pipe.tokenizer.convert_tokens_to_ids(token)] = embedding.to(table)


def load_folder(pipe: DiffusionPipeline, folder: Path) -> DiffusionPipeline:
    """Replace the pipeline's parts by those of a diffusers folder, and return the pipeline.

    The folder holds a whole pipeline, or the network that denoises alone.

    Raises:
        ValueError: the folder's network that denoises is of another kind, or a file is missing or
            damaged, or a weight is not finite. Or the VAE shrinks images by another factor.
    """
    whole, part = (folder / "model_index.json").exists(), denoiser_name(get_denoiser(pipe))
    home = folder / part if whole else folder
    check_network(pipe, home)
    try:
        variant = only_variant(home)
        if whole:
            other = load_pipeline(str(folder), variant=variant)
            parts = other.components
        else:
            options = {"use_safetensors": True, "low_cpu_mem_usage": False}
            parts = {part: DENOISERS[part].from_pretrained(folder, variant=variant, **options)}
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        if not whole and any(home.glob("*.bin")):
            reason = f"{reason} {convert_hint(str(folder), type(get_denoiser(pipe)).__name__)}"
        raise ValueError(f"{folder}: cannot be loaded: {reason}") from error
    stored: set[str] = set()
    for file in home.glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            stored.update(opened.keys())
    if missing := sorted(parts[part].state_dict().keys() - stored):
        raise ValueError(f"{home}: its weights lack {missing[0]}")  # it would be random
    networks = {name: own for name, own in parts.items() if isinstance(own, nn.Module)}
    for name, network in networks.items():
        check_finite({f"{name}.{k}": v for k, v in network.named_parameters()}, folder)
    if whole and other.vae_scale_factor != pipe.vae_scale_factor:
        raise ValueError(f"{folder}: its VAE shrinks images by another factor than this pipeline's")
    for network in networks.values():
        network.to(pipe.device, pipe.dtype).eval().requires_grad_(False)
    pipe.register_modules(**parts)
    return pipe


def check_network(pipe: DiffusionPipeline, folder: Path) -> None:
    """Refuse a network that denoises of another class, or with another interface.

    Raises:
        ValueError: there is no such network, or it does not fit the pipeline's text encoder or VAE.
    """
    own = get_denoiser(pipe)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder}: no config.json of a {denoiser_name(own)}: {error}") from error
    known = {"_class_name": type(own).__name__, **own.config}
    for key in INTERFACE_KEYS:
        if config.get(key) != known.get(key):
            raise ValueError(
                f"{folder}: its {key} is {config.get(key)!r}, this pipeline's is {known.get(key)!r}"
            )
