"""Check a stored model: its files before it is loaded, its networks after."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from safetensors import safe_open
from torch import nn

from unlearn.models.noise_schedule import check_scheduler

WEIGHT_PARTS = ("unet", "transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3")
# a file of weights: its variant, such as "fp16", and its number where there are several
WEIGHT_FILE = re.compile(r"[^.]+?(?:\.(?P<variant>\w+?))?(?:-\d+-of-\d+)?\.safetensors")
# attention in VAEs that early versions of diffusers saved
EARLY_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
EARLY_NAME = re.compile(r"(?<=\.attentions\.0\.)(query|key|value|proj_attn)(?=\.)")


def check_scheduler_file(path: Path, index: Mapping[str, Any], where: str) -> None:
    """Refuse a model whose scheduler is not known, before its weights are loaded.

    Args:
        path: the scheduler's configuration.
        index: the model's model_index.json, which names the scheduler's class.
        where: what the message begins with.

    Raises:
        ValueError: the file is damaged, or the scheduler is not known.
    """
    home = index.get("scheduler")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise TypeError(f"a {type(config).__name__}, not an object")
        name = home[1] if isinstance(home, list) and len(home) == 2 else home
        check_scheduler(str(name), config)
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{where}: {path}: {error}") from error


def check_weight_files(
    folder: Path, index: Mapping[str, Any], variant: str | None, where: str
) -> None:
    """Refuse a folder that lacks the safetensors files of a part, and say what to do.

    Raises:
        ValueError: a part's weights are stored as another variant, or only as pickles, or not.
    """
    parts = [part for part in WEIGHT_PARTS if index.get(part, [None, None]) != [None, None]]
    found: set[str | None] = set()
    for part in parts:
        names = [path.name for path in sorted((folder / part).glob("*"))]
        stored = {m["variant"] for name in names if (m := WEIGHT_FILE.fullmatch(name))}
        found |= stored
        # diffusers takes the weights without a variant where a part has none of that variant
        if stored & {None, variant}:
            continue
        reason = f"{where}: {folder / part}: "
        if stored:
            others = sorted(str(name) for name in stored)
            raise ValueError(
                f"{reason}its weights are stored as variant {', '.join(others)}, not "
                f"{variant or 'without one'}; set model.variant={others[0]}"
            )
        if any(name.endswith((".bin", ".ckpt", ".pt", ".pth")) for name in names):
            raise ValueError(f"{reason}holds a pickle alone. {convert_hint(str(folder))}")
        raise ValueError(f"{reason}holds no .safetensors file of weights")
    if variant is not None and variant not in found:
        raise ValueError(
            f"model.variant={variant!r}: {folder} holds no such weights; its own need "
            "model.variant=null"
        )


def only_variant(folder: Path) -> str | None:
    """Return the variant of a network's weights in a folder that holds one variant alone."""
    names = (path.name for path in folder.glob("*"))
    stored = {m["variant"] for name in names if (m := WEIGHT_FILE.fullmatch(name))}
    return stored.pop() if len(stored) == 1 else None


def convert_hint(source: str, kind: str = "DiffusionPipeline") -> str:
    """Return how to turn the pickles of a folder or hub id into safetensors.

    Args:
        source: the folder or hub id.
        kind: the class of diffusers that reads it.
    """
    return (
        "Weights are loaded from .safetensors alone; where you trust the source, convert it: "
        f'python -c "from diffusers import {kind} as P; '
        f"P.from_pretrained('{source}', use_safetensors=False).save_pretrained('converted')\", "
        "then take converted in its place"
    )


def check_whole(pipe: DiffusionPipeline, folder: Path | None, where: str) -> None:
    """Refuse a pipeline some of whose weights were not stored: they would be random, or nowhere.

    Args:
        pipe: the loaded pipeline.
        folder: where it was loaded from; None: a single file.
        where: what the message begins with.

    Raises:
        ValueError: a weight is missing; the message names it.
    """
    for part in WEIGHT_PARTS[:-1]:  # T5 stores a weight that it shares with itself once
        network = getattr(pipe, part, None)
        if not isinstance(network, nn.Module):
            continue
        missing = {name for name, w in network.named_parameters() if w.is_meta}
        if folder is not None:
            stored: set[str] = set()
            for file in (folder / part).glob("*.safetensors"):
                with safe_open(file, framework="pt") as opened:
                    stored.update(map(common_name, opened.keys()))
            missing = {n for n, _ in network.named_parameters() if common_name(n) not in stored}
        if missing:
            raise ValueError(f"{where}: its {part} lacks the weight {min(missing)}")


def common_name(name: str) -> str:
    """Return the name that a weight has in every version of diffusers and transformers."""
    name = EARLY_NAME.sub(lambda match: EARLY_NAMES[match[1]], name)
    return name.removeprefix("text_model.")


def check_interface(pipe: DiffusionPipeline, where: str) -> None:
    """Refuse a pipeline whose network that denoises does not take what its other parts give.

    Raises:
        ValueError: the latents have another number of channels, as those of an inpainting model,
            or the text states have another width.
    """
    network = getattr(pipe, "unet", None) or pipe.transformer
    takes, gives = network.config.in_channels, pipe.vae.config.latent_channels
    if takes != gives:
        raise ValueError(
            f"{where}: its {type(network).__name__} takes {takes} channels, and its VAE gives "
            f"{gives}; models that take an image or a mask beside the latents are not supported"
        )
    encoders = [getattr(pipe, name, None) for name in ("text_encoder", "text_encoder_2")]
    width = sum(encoder.config.hidden_size for encoder in encoders if encoder is not None)
    own = network.config.get("cross_attention_dim")
    if own is not None and own != width:
        raise ValueError(
            f"{where}: its UNet takes text states of width {own}, its text encoder gives {width}"
        )
