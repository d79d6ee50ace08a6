"""Write a finished run in the formats of other programs, for `unlearn export`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from unlearn.config.run_config import ModelConfig
from unlearn.exports.folder import export_run
from unlearn.exports.single_file import write_single_file
from unlearn.utils.atomic import atomic_path
from unlearn.utils.options import option
from unlearn.weights.delta import (
    check_fit,
    load_unlearned,
    named_weights,
    read_weights_alone,
    write_safetensors,
)
from unlearn.weights.lora import (
    LEAST_ERROR,
    layer_ranks,
    lora_factors,
    to_kohya_format,
    to_peft_format,
)

FORMATS = {  # by format: the name of its file or folder in the run directory
    "folder": "export",
    "delta": "delta.bin",
    "lora": "lora.safetensors",
    "kohya": "kohya.safetensors",
    "single_file": "model.safetensors",
}
LORA = {"lora": to_peft_format, "kohya": to_kohya_format}
DEFAULT_ERROR = 0.01  # relative, of each layer's change in a LoRA


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """The options of `unlearn export`."""

    format: str = option("folder", help="of the file or folder", choices=tuple(FORMATS))
    error: float | None = option(
        None,
        help="of a LoRA: relative error of each layer's change; null: 0.01",
        at_least=LEAST_ERROR,
        at_most=1,
    )
    overwrite: bool = option(False, help="replace a file that is there")


def export_as(config: ModelConfig, out: Path | None, options: ExportOptions) -> str:
    """Write a run in another format, and return a line with the path that was written.

    The line of a LoRA tells the ranks and the size too.

    Args:
        config: the run's configuration.
        out: the file, or the folder of format "folder"; None: the name in `FORMATS`, in the run
            directory.
        options: the format, and for a LoRA the relative error of each layer's change.

    Raises:
        ValueError: an option is not valid, `out` exists, the suffix of `out` is not that of the
            format, or the format cannot hold the run.
    """
    if options.error is not None and options.format not in LORA:
        raise ValueError(f"error={options.error}: format={options.format} has no error")
    out = out or config.folder / FORMATS[options.format]
    if options.format == "folder":
        return str(export_run(config, out))
    suffix = Path(FORMATS[options.format]).suffix
    check_file(out, suffix, options.overwrite, config)
    delta = config.weights
    weights, metadata = read_weights_alone(delta)
    if options.format == "delta":
        write_delta(weights, out)
        return str(out)
    if options.format == "single_file":
        pipe = load_unlearned(config.base.load(), delta)
        write_single_file(pipe, out, metadata)
        return str(out)
    if options.format == "kohya" and not all(name.startswith("unet.") for name in weights):
        raise ValueError(
            "format='kohya': names a UNet's layers alone, and this run's weights are a "
            "transformer's; allowed are folder, delta and lora"
        )
    base = named_weights(config.base.load())
    check_fit(base, weights, delta)
    factors = lora_factors(base, weights, DEFAULT_ERROR if options.error is None else options.error)
    tensors, own = LORA[options.format](factors)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_safetensors(tensors, out, {**metadata, **own})
    ranks, share = layer_ranks(factors).values(), out.stat().st_size / delta.stat().st_size
    return f"{out}: ranks {min(ranks)} to {max(ranks)}, {share:.0%} of the delta's size"


def check_file(out: Path, suffix: str, overwrite: bool, config: ModelConfig) -> None:
    """Refuse a file that an export must not write.

    Raises:
        ValueError: the file has another suffix, or is the run's own; or it exists, and `overwrite`
            is not set or it is no plain file.
    """
    taken = out.exists() and not (overwrite and out.is_file())
    if out.suffix != suffix or taken or out.resolve() == config.weights.resolve():
        raise ValueError(
            f"{out}: name a file that does not exist yet and ends in {suffix} (overwrite=true "
            "replaces one that is not the run's own)"
        )


def write_delta(weights: Mapping[str, Tensor], path: Path) -> None:
    """Write the changed weights as DoCo's reference implementation does, atomically.

    The file is a pickle of plain tensors: {"unet": {name: weight}}, or {"transformer": ...}.
    Concept Ablation writes files of the same form.

    Args:
        weights: the changed weights, by names that begin with the part of the pipeline.
        path: the file.
    """
    sections: dict[str, dict[str, Tensor]] = {}
    for name, weight in weights.items():
        part, _, own = name.partition(".")
        sections.setdefault(part, {})[own] = weight
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as partial:
        torch.save(sections, partial)
