"""Add the weight changes of several runs in one model, for `unlearn merge`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import OmegaConf
from torch import Tensor

from unlearn.config.compose import join_configs
from unlearn.config.saved import (
    WEIGHTS_FILE,
    load_run_config,
    parse_model_config,
    read_run_config,
)
from unlearn.utils.atomic import atomic_folder, write_text
from unlearn.utils.options import option
from unlearn.weights.delta import (
    check_finite,
    check_fit,
    named_weights,
    read_weights_alone,
    write_safetensors,
)


@dataclass(frozen=True, kw_only=True)
class MergeOptions:
    """The options of `unlearn merge`."""

    scale: float = option(1.0, help="of the sum of what each run changed", above=0, at_most=100)


def merge_weights(
    base: Mapping[str, Tensor], deltas: Sequence[Mapping[str, Tensor]], scale: float = 1.0
) -> dict[str, Tensor]:
    """Return the base weights plus the scaled sum of all changes: θ* + s Σ (θ_i − θ*).

    Args:
        base: the base weights θ*, by name.
        deltas: the changed weights θ_i of each run, by name; a missing weight is unchanged.
        scale: the factor s.

    Returns:
        Every weight that a delta has, by name, in the base's dtype.

    Source: task arithmetic (Ilharco et al. 2023, arXiv 2212.04089).
    """
    changes: dict[str, Tensor] = {}
    for delta in deltas:
        for name, weight in delta.items():
            change = weight.double() - base[name].double()
            changes[name] = changes[name] + change if name in changes else change
    return {n: (base[n].double() + scale * c).to(base[n].dtype) for n, c in changes.items()}


def merge_runs(paths: Sequence[Path], out: Path, options: MergeOptions) -> Path:
    """Write the merged weights as a run directory, and return the directory.

    `unlearn evaluate` takes it as any run directory.

    Args:
        paths: the run directories to merge.
        out: the folder to make.
        options: the scale of the sum.

    Raises:
        ValueError: the runs do not fit together, the method of a run acts at inference, `out`
            holds a run, or the scale is not valid.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out}: is a run or a file already; name a folder that does not exist")
    runs = [load_run_config(path) for path in paths]
    parts = [read_weights_alone(path / WEIGHTS_FILE) for path in paths]
    bases = [metadata.get("base") for _, metadata in parts]
    for path, base in zip(paths, bases, strict=True):
        if base != bases[0]:
            raise ValueError(
                f"{path}: its base model is {base!r}, that of {paths[0]} is {bases[0]!r}; only "
                "changes of one base model can be added"
            )
    merged = [f"{run.own_name} ({run.method})" for run in runs]
    saved = join_configs([read_run_config(path) for path in paths])
    saved |= {"after": None, "run_dir": str(out)}
    saved["method"] = {"name": "merge", "merged": merged, "scale": options.scale}
    config = parse_model_config(OmegaConf.create(saved), out)
    concept = config.concept  # here, so that two runs of one target are refused before any work
    own = named_weights(config.base.load())
    for path, (weights, _) in zip(paths, parts, strict=True):
        check_fit(own, weights, path)
    facts = {"base": str(bases[0]), "concept": concept.name, "method": "merge"}
    facts |= {"merged": json.dumps(merged), "scale": str(options.scale)}
    weights = merge_weights(own, [w for w, _ in parts], options.scale)
    check_finite(weights, out)
    with atomic_folder(out) as partial:
        write_text(partial / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(saved)))
        write_safetensors(weights, partial / WEIGHTS_FILE, facts)
    return out
