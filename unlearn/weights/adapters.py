"""Load low-rank files from elsewhere: merge a LoRA into the weights, install an SPM."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from diffusers import DiffusionPipeline
from torch import Tensor

from unlearn.methods.spm import SPM, permeable
from unlearn.weights.delta import check_finite, copy_weights, named_weights
from unlearn.weights.lora_metadata import check_trained_on, read_scales
from unlearn.weights.lora_names import KOHYA_PREFIXES, factor_names


class Factors(NamedTuple):
    """A low-rank change of one layer's weight: scale · up · down."""

    down: Tensor  # (rank, inputs), with a convolution's kernel in the inputs
    up: Tensor  # (outputs, rank)
    scale: float  # see `Scales.scale`


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

    Other factors are a LoRA, whose change is added to the weights in full. `factor_names` knows the
    names.

    Source: the SPM repository's names and metadata (Con6924/SPM, src/models/spm.py), kohya's
    sd-scripts (networks/lora.py), diffusers' `save_lora_weights`.

    Args:
        pipe: the base model's pipeline.
        tensors: the file's tensors.
        metadata: the file's metadata.
        path: the file, for the message.
        targets: what an SPM forgets; None takes the targets that the file names.

    Raises:
        ValueError: the factors do not fit the pipeline (see `read_factors`), were trained on
            another base model, or an SPM's targets are not known.
    """
    check_trained_on(pipe, metadata, path)
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
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"{path}: {name} is a {type(value).__name__}, not a tensor")
    names, own = factor_names(pipe, tensors, path), named_weights(pipe)
    found: dict[str, dict[str, Tensor]] = {}
    for name, (layer, side) in names.items():
        if side in found.setdefault(layer, {}):
            raise ValueError(f"{path}: {name} is a second factor {side!r} of {layer}")
        found[layer][side] = tensors[name].float() if side == "alpha" else tensors[name]
    check_finite({f"{n} {s}": t for n, parts in found.items() for s, t in parts.items()}, path)
    scales = read_scales(metadata, list(KOHYA_PREFIXES), path)
    factors = {}
    for layer, parts in found.items():
        if missing := sorted({"down", "up"} - parts.keys()):
            raise ValueError(f"{path}: {layer} lacks its factor {missing[0]!r}")
        down, up, weight = parts["down"], parts["up"], own[f"{layer}.weight"]
        rank, outputs, inputs = len(down) if down.ndim else 0, len(weight), weight[0].numel()
        alpha = parts.get("alpha")
        if (
            not rank
            or up.shape[:2] != (outputs, rank)
            or (down.numel(), up.numel()) != (rank * inputs, outputs * rank)
            or (alpha is not None and alpha.numel() != 1)
        ):
            raise ValueError(
                f"{path}: {layer} has factors of shape {tuple(down.shape)} and {tuple(up.shape)}, "
                f"which do not make its {tuple(weight.shape)}; made for another base model"
            )
        part, _, name = layer.partition(".")
        stored = None if alpha is None else alpha.item()
        factors[layer] = Factors(
            down.float().reshape(rank, inputs),
            up.float().reshape(outputs, rank),
            scales[part].scale(name, rank, stored),
        )
    return factors


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
