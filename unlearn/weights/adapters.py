"""Load low-rank files from elsewhere: merge a LoRA into the weights, install an SPM."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from unlearn.methods.spm import SPM, permeable
from unlearn.models.pipeline import pipeline_networks
from unlearn.weights.delta import check_finite, copy_weights, named_weights

FACTOR_NAME = re.compile(r"(.+?)\.(?:lora[_.](down|up|A|B)\.weight|(alpha))")
PEFT_SIDES = {"A": "down", "B": "up"}
KOHYA_PREFIXES = {  # the parts that a LoRA can change, and how kohya's names of their layers begin
    "unet": ("lora_unet_",),
    "transformer": (),
    "text_encoder": ("lora_te_text_model_", "lora_te1_text_model_"),
    "text_encoder_2": ("lora_te2_text_model_",),
}


class Factors(NamedTuple):
    """A low-rank change of one layer's weight: scale · up · down."""

    down: Tensor  # (rank, inputs), with a convolution's kernel in the inputs
    up: Tensor  # (outputs, rank)
    scale: float  # alpha / rank


def is_adapter(names: Iterable[str]) -> bool:
    """Tell whether weights of these names are low-rank factors."""
    return any("lora_" in name or ".lora." in name for name in names)


def load_adapter(
    pipe: DiffusionPipeline,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    path: Path,
    targets: list[str] | None,
) -> DiffusionPipeline:
    """Load low-rank factors into the pipeline, in place, and return it.

    Factors are an SPM where they are of rank 1 and of the UNet alone, have the names that SPM and
    kohya share, and lack kohya's metadata. `SPM.install` then lets each prompt set the strength.

    Other factors are a LoRA, whose change is added to the weights in full. The names of a LoRA are
    kohya's (see `KOHYA_PREFIXES`) or diffusers' (unet...., text_encoder....).

    Source: the SPM repository's names and metadata (Con6924/SPM, src/models/spm.py), kohya's
    sd-scripts (networks/lora.py), diffusers' `save_lora_weights`.

    Args:
        pipe: the base model's pipeline.
        tensors: the file's tensors.
        metadata: the file's metadata.
        path: the file, for the message.
        targets: what an SPM forgets; None takes the targets that the file names.

    Raises:
        ValueError: the factors do not fit the pipeline (see `read_factors`), or an SPM's targets
            are not known.
    """
    factors = read_factors(pipe, tensors, metadata, path)
    if all(name.startswith("lora_unet_") for name in tensors) and (
        all(f.down.shape[0] == 1 for f in factors.values())
        and not any(key.startswith("ss_") for key in metadata)
    ):
        words = targets or [t for t in metadata.get("prompts", "").split(",") if t.strip()]
        if not words:
            raise ValueError(
                f"{path}: an SPM whose file does not say what it forgets; give its targets"
            )
        install_spm(pipe, factors, words, path)
        return pipe
    own = named_weights(pipe)
    merged = {}
    for layer, (down, up, scale) in factors.items():
        weight = own[f"{layer}.weight"]
        change = scale * (up @ down).view(weight.shape)
        merged[f"{layer}.weight"] = weight.float() + change.to(weight.device)
    copy_weights(pipe, merged, path)
    return pipe


def layer_names_by_alias(pipe: DiffusionPipeline) -> dict[str, str]:
    """Return the linear and convolutional layers: their names by those that adapter files have.

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


def read_factors(
    pipe: DiffusionPipeline,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    path: Path,
) -> dict[str, Factors]:
    """Return the factors by layer, checked against the pipeline's weights.

    Raises:
        ValueError: a name is no layer's, or a factor is missing, of another shape, or not finite.
    """
    tensors = {n: t.float() if n.endswith(".alpha") else t for n, t in tensors.items()}
    check_finite(tensors, path)
    known, own = layer_names_by_alias(pipe), named_weights(pipe)
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = FACTOR_NAME.fullmatch(name)
        if not match or match[1] not in known:
            raise ValueError(f"{path}: {name} is not a low-rank factor of a layer of this pipeline")
        part = match[3] or PEFT_SIDES.get(match[2], match[2])
        found.setdefault(known[match[1]], {})[part] = tensor
    alphas = stored_alphas(metadata, path)
    factors = {}
    for layer, parts in found.items():
        if missing := sorted({"down", "up"} - parts.keys()):
            raise ValueError(f"{path}: {layer} lacks its factor {missing[0]!r}")
        down, up, weight = parts["down"], parts["up"], own[f"{layer}.weight"]
        rank, outputs, inputs = len(down) if down.ndim else 0, len(weight), weight[0].numel()
        alpha = parts.get("alpha", torch.tensor(match_alpha(layer, alphas, rank)))
        if (
            not rank
            or up.shape[:2] != (outputs, rank)
            or (down.numel(), up.numel(), alpha.numel()) != (rank * inputs, outputs * rank, 1)
        ):
            raise ValueError(
                f"{path}: {layer} has factors of shape {tuple(down.shape)} and {tuple(up.shape)}, "
                f"which do not make its {tuple(weight.shape)}; made for another base model"
            )
        factors[layer] = Factors(
            down.float().reshape(rank, inputs),
            up.float().reshape(outputs, rank),
            alpha.item() / rank,
        )
    return factors


def stored_alphas(metadata: Mapping[str, str], path: Path) -> dict[str, dict[str, float]]:
    """Return the alphas that diffusers stored beside the factors, by part and pattern.

    A pattern is a regular expression for layers' names. Patterns of single layers come before the
    pattern of the whole network.

    Raises:
        ValueError: the metadata is not diffusers', or a pattern is no regular expression. Or the
            factors are scaled in another way than by alpha / rank.
    """
    alphas: dict[str, dict[str, float]] = {part: {} for part in KOHYA_PREFIXES}
    try:
        stored = dict(json.loads(metadata.get("lora_adapter_metadata", "{}")))
        for part, known in alphas.items():
            for key in ("use_rslora", "use_dora"):
                if stored.get(f"{part}.{key}"):
                    raise ValueError(f"a LoRA with {key} is not supported")
            for pattern, alpha in dict(stored.get(f"{part}.alpha_pattern", {})).items():
                re.compile(pattern)
                known[pattern.replace("text_model.", "")] = float(alpha)  # as in `named_weights`
            if f"{part}.lora_alpha" in stored:
                known[".*"] = float(stored[f"{part}.lora_alpha"])
    except (ValueError, TypeError, re.error) as error:
        raise ValueError(f"{path}: lora_adapter_metadata: {error}") from error
    return alphas


def match_alpha(layer: str, alphas: Mapping[str, Mapping[str, float]], default: float) -> float:
    """Return the alpha of the first pattern that the end of the layer's name matches.

    The patterns are those of `stored_alphas`; `default` is the alpha where none matches.

    Source: PEFT's `get_pattern_key`.
    """
    part, _, name = layer.partition(".")
    fits = (a for key, a in alphas[part].items() if re.match(rf"(.*\.)?({key})$", name))
    return next(fits, default)


def install_spm(
    pipe: DiffusionPipeline, factors: dict[str, Factors], targets: list[str], path: Path
) -> None:
    """Install the membranes of an SPM; a layer without factors is left as it is.

    Raises:
        ValueError: there are factors for a layer that an SPM does not act on.
    """
    layers = {f"unet.{name}": layer for name, layer in permeable(pipe.unet).items()}
    if unknown := sorted(factors.keys() - layers.keys()):
        raise ValueError(f"{path}: {unknown[0]} lies outside of the layers that an SPM acts on")
    weights = {}
    for name, layer in layers.items():
        shape, short = layer.weight.shape, name.removeprefix("unet.")
        down, up = layer.weight.new_zeros(1, *shape[1:]), layer.weight.new_zeros(shape[0], 1)
        if name in factors:
            down = factors[name].down.view_as(down)
            up = factors[name].up * factors[name].scale
        weights[f"{short}.down"] = down
        weights[f"{short}.up"] = up.view(shape[0], 1, *[1] * (len(shape) - 2))
    SPM.install(pipe, weights, {"targets": targets})
