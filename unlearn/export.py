"""The unlearned weights: a delta of changed weights, and a whole pipeline with a model card."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from unlearn.files import whole

if TYPE_CHECKING:  # not at run time: it would slow `unlearn --help`
    from diffusers import DiffusionPipeline
    from omegaconf import DictConfig


def save_unlearned(weights: Mapping[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write the changed UNet weights; `metadata` names base, concept and method."""
    write_safetensors({f"unet.{k}": v for k, v in weights.items()}, path, metadata)


def write_safetensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write tensors and metadata atomically.

    Equal ones give equal bytes: safetensors writes metadata in a random order, so the header is
    written again with sorted keys.
    """
    raw = save({k: v.detach().contiguous().cpu() for k, v in tensors.items()}, metadata=metadata)
    end = 8 + int.from_bytes(raw[:8], "little")
    header = json.dumps(json.loads(raw[8:end]), sort_keys=True).encode()
    header += b" " * (-len(header) % 8)  # the format's alignment
    with whole(path) as partial:
        partial.write_bytes(len(header).to_bytes(8, "little") + header + raw[end:])


def read_safetensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a safetensors file.

    Raises:
        ValueError: it is none, or its header does not fit its bytes.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path}: not a whole safetensors file: {error}") from error


def named_weights(pipe: DiffusionPipeline) -> dict[str, Tensor]:
    """The weights of the UNet and the text encoder: "unet.NAME", "text_encoder.NAME".

    Without the "text_model." that the text encoder's names have in some versions of transformers.
    """
    weights = {f"unet.{name}": weight for name, weight in pipe.unet.named_parameters()}
    for name, weight in pipe.text_encoder.named_parameters():
        weights[f"text_encoder.{name.removeprefix('text_model.')}"] = weight
    return weights


def patch(
    pipe: DiffusionPipeline, weights: Mapping[str, Tensor], path: str | os.PathLike[str]
) -> None:
    """Copy weights into the pipeline, under the names of `named_weights`.

    Raises:
        ValueError: see `check_fit`; nothing is changed.
    """
    own = named_weights(pipe)
    check_fit(own, weights, path)
    with torch.no_grad():
        for name, tensor in weights.items():
            own[name].copy_(tensor)


def check_fit(
    own: Mapping[str, Tensor], weights: Mapping[str, Tensor], path: str | os.PathLike[str]
) -> None:
    """Refuse weights that cannot take the place of a pipeline's own, see `named_weights`.

    Raises:
        ValueError: they do not fit the pipeline, or are not finite. Begins with `path`.
    """
    for name, tensor in weights.items():
        if name not in own:
            raise ValueError(f"{path}: {name} is not a weight of this pipeline")
        if own[name].shape != tensor.shape:
            shapes = f"{tuple(tensor.shape)}, the pipeline's is {tuple(own[name].shape)}"
            raise ValueError(f"{path}: {name} has shape {shapes}; made for another base model")
    check_finite(weights, path)


def check_finite(weights: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Refuse values that are not finite.

    Raises:
        ValueError: names the first weight that holds one. Begins with `path`.
    """
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{path}: {name} holds values that are not finite")


def load_unlearned(pipe: DiffusionPipeline, path: str | os.PathLike[str]) -> DiffusionPipeline:
    """Patch a diffusers pipeline in place with unlearned weights, and return it.

    A method that acts at inference is installed: the pipeline samples as it wants.

    Raises:
        ValueError: the weights do not fit the pipeline, or are not finite; nothing is changed.
    """
    weights, metadata = read_safetensors(path)
    options = metadata.get("at_inference")
    if not options:
        patch(pipe, weights, path)
        return pipe
    from unlearn.concepts import check
    from unlearn.methods import METHODS

    check_finite(weights, path)
    check(f"{path}: method", metadata["method"], list(METHODS))
    own = {name.removeprefix("unet."): tensor for name, tensor in weights.items()}
    METHODS[metadata["method"]].install(pipe, own, json.loads(options))
    return pipe


def read_weights_alone(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The weights and the metadata of a run's file whose weights alone are its result.

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


PARTS = ("unlearned.safetensors", "config.yaml", "result.json", "before_after.png")  # of a run
CARD = """---
base_model: {base}
library_name: diffusers
pipeline_tag: text-to-image
tags: [unlearning, {method}]
---

# {base}, with {concept} unlearned

`{method}` made this text-to-image model forget **{concept}** ({kind}). Its targets, and the anchors
beside them: {targets}.

```python
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("PATH_OF_THIS_FOLDER")
```

`unlearned.safetensors` holds the changed weights alone: `unlearn.load_unlearned(base_pipeline,
path)` patches the base model with them.

## Measured

Base → unlearned with the 95 % Wilson interval, on the same prompts and noise.

{table}

## Limits

The concept is suppressed, not proven to be gone: adversarial prompts, other languages, image
prompts or fine-tuning can bring it back. What the four prompt sets do not ask was not measured.
Whatever licence and conditions of use the base model has hold here too.

Made with `unlearn`; the run's configuration is `config.yaml`.
"""


def export_run(config: DictConfig, run: Path, out: Path) -> Path:
    """Write the whole unlearned pipeline as a diffusers folder, with the delta and a model card.

    Args:
        config: of the run.
        run: a finished run directory.
        out: the folder to make.

    Raises:
        ValueError: `out` exists and is not empty, `run` lacks a file, or the method acts at
            inference, so that no weights alone are its result.
    """
    from unlearn.backbone import load_pipeline
    from unlearn.config import base_name, base_of, concept_of
    from unlearn.evaluation.evaluate import table

    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out}: is not empty; name a folder that does not exist yet")
    for name in PARTS:
        if not (run / name).exists():
            raise ValueError(
                f"{run}: {name} is missing; `unlearn evaluate {run}` writes the results"
            )
    read_weights_alone(run / "unlearned.safetensors")
    concept = concept_of(config)
    pipe = load_unlearned(load_pipeline(**base_of(config)), run / "unlearned.safetensors")
    pipe.save_pretrained(out)
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    card = CARD.format(
        base=base_name(config),
        method=config.method.name,
        concept=concept.name,
        kind=concept.kind,
        targets=", ".join(f"{t} (to {a or 'no style'})" for t, a in concept.anchors.items()),
        table=table(result) if result["sets"] else "Not judged.",
    )
    (out / "README.md").write_text(card, encoding="utf-8")
    for name in PARTS:
        shutil.copyfile(run / name, out / name)
    return out
