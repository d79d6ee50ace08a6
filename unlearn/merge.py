"""Several runs in one model: `unlearn merge` adds up what each changed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from unlearn.backbone import load_pipeline
from unlearn.cli import load_run
from unlearn.config import base_of
from unlearn.export import check_fit, named_weights, read_weights_alone, write_safetensors

FILE = "unlearned.safetensors"


@dataclass
class MergeOptions:
    """What `unlearn merge` takes as KEY=VALUE."""

    scale: float = 1.0


class Part(NamedTuple):
    """What is merged: a run directory, or a run's file alone, without a config."""

    path: Path
    config: DictConfig | None
    weights: dict[str, Tensor]
    metadata: dict[str, str]


def merge(
    base: Mapping[str, Tensor], deltas: Sequence[Mapping[str, Tensor]], scale: float = 1.0
) -> dict[str, Tensor]:
    """The base weights plus `scale` times the sum of what each delta changed: θ* + s Σ (θ_i − θ*).

    Args:
        base: weights θ* by name.
        deltas: changed weights θ_i by name; a weight that one lacks is as in the base.
        scale: s.

    Returns:
        Every weight of a delta, in the base's dtype.

    Source: task arithmetic (Ilharco et al. 2023, arXiv 2212.04089).
    """
    changes: dict[str, Tensor] = {}
    for delta in deltas:
        for name, weight in delta.items():
            change = weight.double() - base[name].double()
            changes[name] = changes[name] + change if name in changes else change
    return {n: (base[n].double() + scale * c).to(base[n].dtype) for n, c in changes.items()}


def merge_runs(paths: Sequence[Path], out: Path, options: MergeOptions) -> list[Path]:
    """Write the merged weights; returns their path and the run directories to evaluate them by.

    `out` holds the weights and, for each run directory, one of the same name with the merged
    weights and that run's config, so that `unlearn evaluate OUT/*/` asks for each concept in turn.

    Args:
        paths: run directories, or `unlearned.safetensors` files alone.
        out: the folder to make.
        options: the scale of the sum.

    Raises:
        ValueError: they do not fit together, one acts at inference, `out` is not empty, or the
            scale is not valid.
    """
    if not (math.isfinite(options.scale) and options.scale > 0):
        raise ValueError(f"scale={options.scale}: more than 0 is needed")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out}: is not empty; name a folder that does not exist yet")
    parts = [read_part(path) for path in paths]
    configs = configs_by_folder(parts, out, options)
    base = named_weights(load_pipeline(**common_base(parts)))
    for part in parts:
        check_fit(base, part.weights, part.path)
    merged = merge(base, [part.weights for part in parts], options.scale)
    metadata = describe(parts, options)
    for folder in (out, *configs):
        folder.mkdir(parents=True, exist_ok=True)
        write_safetensors(merged, folder / FILE, metadata)
    for folder, config in configs.items():
        (folder / "config.yaml").write_text(OmegaConf.to_yaml(config), encoding="utf-8")
    return [out / FILE, *configs]


def read_part(path: Path) -> Part:
    """A run directory or a run's file, checked to be one whose weights alone are its result.

    Raises:
        ValueError: it is neither, or its method acts at inference.
    """
    config, file = None, path
    if not path.is_file():
        config, folder = load_run(str(path))
        file = folder / FILE
    weights, metadata = read_weights_alone(file)
    if missing := [key for key in ("base", "concept", "method") if key not in metadata]:
        raise ValueError(f"{file}: its metadata lack {missing[0]!r}, which a run's file has")
    return Part(path, config, weights, metadata)


def common_base(parts: Sequence[Part]) -> dict[str, Any]:
    """The base model of all parts: arguments of `load_pipeline`.

    Raises:
        ValueError: they have different ones, or it is of random weights and no part is a run
            directory, whose config alone says how wide it is.
    """
    first = parts[0]
    for part in parts:
        if part.metadata["base"] != first.metadata["base"]:
            raise ValueError(
                f"{part.path}: its base model is {part.metadata['base']!r}, that of {first.path} "
                f"is {first.metadata['base']!r}; only changes of one base model can be added"
            )
    configs = [part.config for part in parts if part.config is not None]
    if configs:
        return base_of(configs[0])
    if first.metadata["base"].startswith("random:"):
        raise ValueError(f"{first.path}: of random weights; give its run directory, not the file")
    return {"pretrained": first.metadata["base"]}


def configs_by_folder(
    parts: Sequence[Part], out: Path, options: MergeOptions
) -> dict[Path, DictConfig]:
    """The config of each run directory, its method the merging, by its folder in `out`.

    Raises:
        ValueError: two run directories have one name.
    """
    names = [f"{part.metadata['concept']} ({part.metadata['method']})" for part in parts]
    configs: dict[Path, DictConfig] = {}
    for part in parts:
        if part.config is None:
            continue
        folder = out / part.path.resolve().name
        if folder in configs:
            raise ValueError(f"{part.path}: another run directory is called {folder.name!r} too")
        config = part.config.copy()
        config.method = {"name": "merge", "merged": names, "scale": options.scale}
        config.run_dir = str(folder)
        configs[folder] = config
    return configs


def describe(parts: Sequence[Part], options: MergeOptions) -> dict[str, str]:
    """The metadata of the merged file: its base and concepts, and what is known of each part."""
    keys = ("concept", "method", "config_sha256")
    return {
        "base": parts[0].metadata["base"],
        "concept": ", ".join(part.metadata["concept"] for part in parts),
        "method": "merge",
        "scale": str(options.scale),
        "merged": json.dumps([{k: part.metadata.get(k) for k in keys} for part in parts]),
    }
