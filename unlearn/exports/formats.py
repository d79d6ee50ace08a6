"""A finished run in the formats of other programs: what `unlearn export` writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from unlearn.config.run_config import ModelConfig
from unlearn.exports.folder import export_run
from unlearn.utils.atomic import atomic_path
from unlearn.utils.options import option
from unlearn.weights.delta import check_fit, named_weights, read_weights_alone, write_safetensors
from unlearn.weights.lora import LEAST_ERROR, kohya_file, lora_factors, peft_file, ranks_of

FORMATS = {  # and what the run directory calls each
    "folder": "export",
    "delta": "delta.bin",
    "lora": "lora.safetensors",
    "kohya": "kohya.safetensors",
}
LORA = {"lora": peft_file, "kohya": kohya_file}
DEFAULT_ERROR = 0.01  # of a LoRA, unless another is given


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What `unlearn export` takes as KEY=VALUE."""

    format: str = option("folder", help="of the file or folder", choices=tuple(FORMATS))
    error: float | None = option(
        None,
        help="of a LoRA: relative error of each layer's change; null: 0.01",
        at_least=LEAST_ERROR,
        at_most=1,
    )


def export_as(config: ModelConfig, out: Path | None, options: ExportOptions) -> str:
    """Write a run in another format; returns the path and what there is to say of it.

    Args:
        config: of the run.
        out: the file or, of format "folder", the folder; None: in the run directory, see `FORMATS`.
        options: the format, and for a LoRA the relative error of each layer's change.

    Raises:
        ValueError: an option is not valid, `out` is there already or does not end as its format
            does, or the format cannot hold the run.
    """
    if options.error is not None and options.format not in LORA:
        raise ValueError(f"error={options.error}: format={options.format} has no error")
    out = out or config.folder / FORMATS[options.format]
    if options.format == "folder":
        return str(export_run(config, out))
    suffix = Path(FORMATS[options.format]).suffix
    if out.exists() or out.suffix != suffix:
        raise ValueError(f"{out}: name a file that does not exist yet and ends in {suffix}")
    delta = config.weights
    weights, metadata = read_weights_alone(delta)
    if options.format == "delta":
        write_delta(weights, out)
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
    ranks, share = ranks_of(factors).values(), out.stat().st_size / delta.stat().st_size
    return f"{out}: ranks {min(ranks)} to {max(ranks)}, {share:.0%} of the delta's size"


def write_delta(weights: Mapping[str, Tensor], path: Path) -> None:
    """Write the changed weights as DoCo's reference implementation does, atomically.

    A pickle of plain tensors: {"unet": {name: weight}}, or {"transformer": ...}. Concept Ablation's
    is of the same kind.
    """
    sections: dict[str, dict[str, Tensor]] = {}
    for name, weight in weights.items():
        part, _, own = name.partition(".")
        sections.setdefault(part, {})[own] = weight
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as partial:
        torch.save(sections, partial)
