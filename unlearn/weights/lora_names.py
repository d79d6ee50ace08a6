"""Find the layers that the names in a LoRA file stand for."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from diffusers import DiffusionPipeline
from diffusers.utils import convert_state_dict_to_peft, convert_unet_state_dict_to_peft
from diffusers.utils.state_dict_utils import StateDictType
from torch import nn

from unlearn.models.pipeline import denoiser_name, get_denoiser, pipeline_networks

FACTOR_NAME = re.compile(r"(.+?)\.(?:lora[_.](down|up|A|B)(?:\.default)?\.weight|(alpha))")
PEFT_SIDES = {"A": "down", "B": "up"}
KOHYA_PREFIXES = {  # the parts that a LoRA can change, and how kohya's names of their layers begin
    "unet": ("lora_unet_",),
    "transformer": (),
    "text_encoder": ("lora_te_text_model_", "lora_te1_text_model_"),
    "text_encoder_2": ("lora_te2_text_model_",),
}
KOHYA_NAME = re.compile(r"(lora_(?:unet|te[12]?)_\w+)(\..+)")


class FactorName(NamedTuple):
    """What a tensor of a LoRA file is: the name of a layer, and "down", "up" or "alpha"."""

    layer: str
    side: str


def is_adapter(names: Iterable[Any]) -> bool:
    """Tell whether weights of these names are low-rank factors."""
    marks = ("lora_", "_lora.", ".lora.")
    return any(mark in str(name) for name in names for mark in marks)


def factor_names(
    pipe: DiffusionPipeline, names: Iterable[str], path: Path
) -> dict[str, FactorName]:
    """Return what each tensor of a LoRA file is, by the tensor's name.

    A name that is made of a layer's own name is looked up. diffusers converts the other names:
    those of sd-scripts for SDXL, which are the original Stable Diffusion's, and those of old
    versions of diffusers.

    Raises:
        ValueError: a name is no layer's.
    """
    known = layer_names_by_alias(pipe)
    found: dict[str, FactorName] = {}
    for name in names:
        match = FACTOR_NAME.fullmatch(str(name))
        if match is None or match[1] not in known:
            match = FACTOR_NAME.fullmatch(convert_name(pipe, str(name)))
        if match is None or match[1] not in known:
            raise ValueError(f"{path}: {name} is not a low-rank factor of a layer of this pipeline")
        found[name] = FactorName(known[match[1]], match[3] or PEFT_SIDES.get(match[2], match[2]))
    return found


def layer_names_by_alias(pipe: DiffusionPipeline) -> dict[str, str]:
    """Return the linear and convolutional layers: their names by those that LoRA files have.

    The values are the names of `named_weights` without ".weight". The keys are diffusers' and
    kohya's names.
    """
    names = {}
    for part, network in pipeline_networks(pipe).items():
        for name, layer in network.named_modules():
            if part in KOHYA_PREFIXES and isinstance(layer, nn.Linear | nn.Conv2d):
                short = name.removeprefix("text_model.")
                kohya = (begin + short.replace(".", "_") for begin in KOHYA_PREFIXES[part])
                for alias in (f"{part}.{short}", f"{part}.text_model.{short}", *kohya):
                    names[alias] = f"{part}.{short}"
    return names


def convert_name(pipe: DiffusionPipeline, name: str) -> str:
    """Return the name that diffusers' converters give a tensor of a LoRA file: PEFT's.

    A name without a part of the pipeline is one of the network that denoises, as
    `save_attn_procs` wrote it.
    """
    if kohya := KOHYA_NAME.fullmatch(name):
        return convert_kohya_layer(pipe, kohya[1]) + kohya[2]
    part = name.partition(".")[0]
    if part.startswith("text_encoder"):
        names = {name: name}
        for kind in (StateDictType.DIFFUSERS, StateDictType.DIFFUSERS_OLD):
            names = convert_state_dict_to_peft(names, kind)
    else:
        own = "" if part in KOHYA_PREFIXES else f"{denoiser_name(get_denoiser(pipe))}."
        names = convert_unet_state_dict_to_peft({own + name: name})
    return str(next(iter(names)))


def convert_kohya_layer(pipe: DiffusionPipeline, layer: str) -> str:
    """Return diffusers' name of a layer that sd-scripts names, or the name itself if unknown.

    Layers are converted one by one. Of many, diffusers drops some where a file mixes its two ways
    of naming blocks, and takes the first block for the tenth.
    """
    if not hasattr(pipe, "unet"):
        return layer
    sides = {f"{layer}.lora_{side}.weight": side for side in ("down", "up")}
    try:
        names, _ = pipe.lora_state_dict(sides, unet_config=pipe.unet.config)
    except (ValueError, IndexError, KeyError):  # a name that diffusers cannot parse
        return layer
    down = next(name for name, side in names.items() if side == "down")
    return convert_name(pipe, down).removesuffix(".lora_A.weight")
