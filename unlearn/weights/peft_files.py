"""Read the files that PEFT saves, as if diffusers had saved them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from unlearn.utils.files import read_json
from unlearn.weights.delta import named_weights, read_tensors
from unlearn.weights.lora_names import FACTOR_NAME, KOHYA_PREFIXES, layer_names_by_alias

PEFT_PREFIX = "base_model.model."
PEFT_CONFIG = "adapter_config.json"
PEFT_FILES = ("adapter_model.safetensors", "adapter_model.bin")


def is_peft(names: Iterable[Any]) -> bool:
    """Tell whether PEFT's `save_pretrained` wrote tensors of these names."""
    return any(str(name).startswith(PEFT_PREFIX) for name in names)


def peft_files(folder: Path) -> list[Path]:
    """Return the files of PEFT in a folder, or in its folders named after a pipeline's parts."""
    files = []
    for home in (folder, *(folder / part for part in KOHYA_PREFIXES)):
        files += [home / name for name in PEFT_FILES if (home / name).is_file()][:1]
    return files


def read_peft(
    pipe: DiffusionPipeline, files: Sequence[Path]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the tensors and the metadata of PEFT's files, in the form of `save_lora_weights`.

    The names get the part of the pipeline in front. `adapter_config.json`, which lies beside each
    file, becomes the metadata.

    Raises:
        ValueError: a configuration is missing, damaged, or not a LoRA's. Or it is not clear which
            part a file is of.
    """
    named: dict[str, Any] = {}
    stored: dict[str, Any] = {}
    for path in files:
        place = path.parent / PEFT_CONFIG
        config = read_json(place, dict[str, Any])
        if config.get("peft_type") != "LORA":
            raise ValueError(
                f"{place}: peft_type={config.get('peft_type')!r:.80}: 'LORA' is needed"
            )
        own = {str(n).removeprefix(PEFT_PREFIX): t for n, t in read_tensors(path)[0].items()}
        part = find_part(pipe, own, path)
        stored |= {f"{part}.{key}": value for key, value in config.items()}
        named |= {f"{part}.{name}": tensor for name, tensor in own.items()}
    return named, {"lora_adapter_metadata": json.dumps(stored)}


def find_part(pipe: DiffusionPipeline, tensors: Mapping[str, Any], path: Path) -> str:
    """Return the part of the pipeline that PEFT's factors are of.

    It is the folder's name, where that is a part; else the only part whose layers they fit.

    Raises:
        ValueError: no part fits, or more than one.
    """
    parts = [part for part in KOHYA_PREFIXES if getattr(pipe, part, None) is not None]
    if path.absolute().parent.name in parts:
        return path.absolute().parent.name
    known, own = layer_names_by_alias(pipe), named_weights(pipe)

    def fits(part: str) -> bool:
        for name, tensor in tensors.items():
            match = FACTOR_NAME.fullmatch(name)
            layer = known.get(f"{part}.{match[1]}") if match else None
            if layer is None:
                return False
            shape = getattr(tensor, "shape", ())
            if match and match[2] == "A" and shape[1:2] != own[f"{layer}.weight"].shape[1:2]:
                return False
        return True

    fitting = [part for part in parts if fits(part)]
    if len(fitting) != 1:
        raise ValueError(
            f"{path}: its layers are those of {' and '.join(fitting) or 'no part'} of this "
            f"pipeline; a folder named after its part tells: {', '.join(parts)}"
        )
    return fitting[0]
