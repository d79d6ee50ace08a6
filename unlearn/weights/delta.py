"""Write and read unlearned weights as a delta: a file of the changed weights alone."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from unlearn.methods.base import UnlearningModule
from unlearn.methods.registry import METHODS, method_for
from unlearn.models.pipeline import pipeline_networks
from unlearn.utils.atomic import atomic_path
from unlearn.utils.checks import check_choice
from unlearn.utils.errors import RunError

FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def save_unlearned(
    weights: Mapping[str, Tensor], path: Path, metadata: dict[str, str], part: str = "unet"
) -> None:
    """Write the changed weights of a part; `metadata` names base, concept and method.

    Raises:
        RunError: a weight is not finite; nothing is written.
    """
    try:
        check_finite(weights, path)
    except ValueError as error:
        raise RunError(
            f"{error}; nothing is written. Lower method.lr or method.strength"
        ) from error
    write_safetensors({f"{part}.{k}": v for k, v in weights.items()}, path, metadata)


def write_safetensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write tensors and metadata as a safetensors file, atomically.

    Equal tensors and metadata give equal bytes. safetensors writes metadata in a random order, so
    the header is written again with sorted keys.
    """
    raw = save({k: v.detach().contiguous().cpu() for k, v in tensors.items()}, metadata=metadata)
    end = 8 + int.from_bytes(raw[:8], "little")
    header = json.dumps(json.loads(raw[8:end]), sort_keys=True).encode()
    header += b" " * (-len(header) % 8)  # the format's alignment
    with atomic_path(path) as partial:
        partial.write_bytes(len(header).to_bytes(8, "little") + header + raw[end:])


def read_safetensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a safetensors file.

    Raises:
        ValueError: the file is no safetensors file, or its header does not fit its bytes.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a whole safetensors file: {error}") from error


def read_pickle(path: Path) -> dict[str, Any]:
    """Return the dictionary of tensors in a PyTorch file, without running what else the file holds.

    Raises:
        ValueError: the file is no PyTorch file of plain tensors, or holds no dictionary.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken file raises anything
        raise ValueError(
            f"{path}: not a PyTorch file of plain tensors; what else a pickle holds can be code, "
            "and is never run"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}, not named weights")
    return content


def read_tensors(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the content and the metadata of a safetensors file, or else of a PyTorch file.

    A PyTorch file has no metadata.

    Raises:
        ValueError: the file is damaged, or holds more than plain tensors.
    """
    return read_safetensors(path) if path.suffix == ".safetensors" else (read_pickle(path), {})


def named_weights(pipe: DiffusionPipeline) -> dict[str, Tensor]:
    """Return the weights of all networks but the VAE, by name in the pipeline: "unet.NAME", ...

    The names lack the "text_model." that text encoders' names have in some versions of
    transformers.
    """
    return {
        f"{part}.{name.removeprefix('text_model.')}": weight
        for part, network in pipeline_networks(pipe).items()
        if part != "vae"
        for name, weight in network.named_parameters()
    }


def copy_weights(
    pipe: DiffusionPipeline, weights: Mapping[str, Tensor], path: str | os.PathLike[str]
) -> None:
    """Copy weights into the pipeline, under the names of `named_weights`.

    Raises:
        ValueError: the weights do not fit the pipeline (see `check_fit`); nothing is changed.
    """
    own = named_weights(pipe)
    check_fit(own, weights, path)
    with torch.no_grad():
        for name, tensor in weights.items():
            own[name].copy_(tensor)


def check_fit(
    own: Mapping[str, Tensor], weights: Mapping[str, Tensor], path: str | os.PathLike[str]
) -> None:
    """Refuse weights that cannot take the place of a pipeline's own.

    Args:
        own: the pipeline's weights, as `named_weights` gives them.
        weights: the new weights, under the same names.
        path: the file of the new weights, for the message.

    Raises:
        ValueError: the weights do not fit the pipeline, or are not finite. The message begins with
            `path`.
    """
    if not weights:
        raise ValueError(f"{path}: holds no weights")
    for name, tensor in weights.items():
        if name not in own:
            raise ValueError(f"{path}: {name} is not a weight of this pipeline")
        if own[name].shape != tensor.shape:
            shapes = f"{tuple(tensor.shape)}, the pipeline's is {tuple(own[name].shape)}"
            raise ValueError(f"{path}: {name} has shape {shapes}; made for another base model")
    check_finite(weights, path)
    check_finite({name: tensor.to(own[name].dtype) for name, tensor in weights.items()}, path)


def check_finite(weights: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Refuse weights that hold anything but finite floating-point numbers.

    Raises:
        ValueError: a weight is refused; the message begins with `path` and names the first one.
    """
    for name, tensor in weights.items():
        if tensor.dtype not in FLOAT_DTYPES or tensor.layout != torch.strided or tensor.is_meta:
            kind = f"{tensor.dtype}, {tensor.layout}, on {tensor.device}"
            raise ValueError(f"{path}: {name} is of {kind}; allowed are dense {list(FLOAT_DTYPES)}")
        if not tensor.isfinite().all():
            raise ValueError(f"{path}: {name} holds values that are not finite")


def load_unlearned(pipe: DiffusionPipeline, path: str | os.PathLike[str]) -> DiffusionPipeline:
    """Patch a diffusers pipeline in place with unlearned weights, and return it.

    A method that acts at inference is installed in the pipeline, which then samples as the method
    wants.

    Raises:
        ValueError: the file does not fit the pipeline, see `read_fitting_weights`. Nothing is
            changed.
    """
    weights, metadata = read_fitting_weights(pipe, path)
    if not metadata.get("at_inference"):
        copy_weights(pipe, weights, path)
        return pipe
    method, options = inference_method(pipe, metadata, path)
    own = {name.partition(".")[2]: tensor for name, tensor in weights.items()}
    try:
        method.install(pipe, own, options)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return pipe


def read_fitting_weights(
    pipe: DiffusionPipeline, path: str | os.PathLike[str]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the weights and the metadata of a run's file, once they are found to fit the pipeline.

    The pipeline is not changed.

    Raises:
        ValueError: the weights do not fit the pipeline, or are not finite. Or the file names an
            unknown method that acts at inference.
    """
    weights, metadata = read_safetensors(path)
    if metadata.get("at_inference"):
        inference_method(pipe, metadata, path)
        check_finite(weights, path)
    else:
        check_fit(named_weights(pipe), weights, path)
    return weights, metadata


def check_base_model(path: Path, base: str) -> None:
    """Refuse a run's weights that name another base model than the run's config.

    Raises:
        ValueError: the base models differ, or the file is damaged.
    """
    own = read_safetensors(path)[1].get("base", base)
    if own != base:
        raise ValueError(f"{path}: made for the base model {own!r}; its config.yaml says {base!r}")


def check_base_name(metadata: Mapping[str, str], base: str, path: Path) -> None:
    """Refuse a file of ours whose metadata names another base model.

    The last word of a path or hub id counts, so that a downloaded copy is the same model.

    Raises:
        ValueError: the base models differ.
    """
    own = metadata.get("base", base)
    random = own.startswith("random:") != base.startswith("random:")
    if random or Path(own).name != Path(base).name:
        raise ValueError(
            f"{path}: made for the base model {own!r}; the base model here is {base!r} "
            "(model.pretrained)"
        )


def inference_method(
    pipe: DiffusionPipeline, metadata: Mapping[str, str], path: str | os.PathLike[str]
) -> tuple[type[UnlearningModule], dict[str, Any]]:
    """Return the method that a file says acts at inference, and the method's options.

    Raises:
        ValueError: there is no such method, the method does not take such a pipeline, or it needs
            other options. The message begins with `path`.
    """
    acting = [name for name, method in METHODS.items() if method.AT_INFERENCE]
    name = metadata.get("method", "")
    if name not in METHODS.broken:
        check_choice(f"{path}: method", name, acting)
    try:
        method = method_for(pipe, name)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    try:
        options = dict(json.loads(metadata["at_inference"]))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: at_inference is no dictionary: {error}") from error
    needed = method.AT_INFERENCE
    if options.keys() != needed.keys() or not all(
        isinstance(value, needed[key]) for key, value in options.items()
    ):
        raise ValueError(f"{path}: at_inference={options}: {name} needs {list(needed)}")
    return method, options


def read_weights_alone(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the weights and the metadata of a run's file whose weights alone are its result.

    Raises:
        ValueError: the method acts at inference, which no other format holds.
    """
    weights, metadata = read_safetensors(path)
    if "at_inference" in metadata:
        raise ValueError(
            f"{path}: method.name={metadata['method']!r} acts at inference, which changed weights "
            "cannot hold; unlearn.load_unlearned(pipe, path) installs it in a pipeline"
        )
    return weights, metadata
