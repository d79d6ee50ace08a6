"""Keep images on disk, named by the hash of all that decides them."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor

from unlearn.models.pipeline import pipeline_networks
from unlearn.utils.atomic import atomic_path
from unlearn.utils.images import read_image

TOKENIZERS = ("tokenizer", "tokenizer_2", "tokenizer_3")  # of a pipeline, where it has them


def cache_folder() -> Path:
    """Return `$UNLEARN_CACHE`, or else the folder `unlearn` in the user's cache folder."""
    own = os.environ.get("UNLEARN_CACHE")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(own) if own else home / "unlearn"


def pipeline_fingerprint(pipe: DiffusionPipeline) -> str:
    """Return a hash of the pipeline's networks and tokenizers, and of the libraries' versions."""
    digest = hashlib.blake2b(digest_size=16)
    for module in pipeline_networks(pipe).values():
        digest.update(
            f"{type(module)}{json.dumps(network_settings(module), sort_keys=True)}".encode()
        )
        for name, tensor in module.state_dict().items():
            digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}{tensor.device.type}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    facts: list[Any] = []
    for tokenizer in (t for name in TOKENIZERS if (t := getattr(pipe, name, None)) is not None):
        own = json.loads(tokenizer.backend_tokenizer.to_str())
        own |= {"padding": tokenizer.padding_side, "truncation": tokenizer.model_max_length}
        facts.append(own)  # without how the last call padded and cut
    if zeros := pipe.config.get("force_zeros_for_empty_prompt"):
        facts.append(zeros)
    facts += [torch.__version__, diffusers.__version__, transformers.__version__]
    digest.update(json.dumps(facts, sort_keys=True).encode())
    return digest.hexdigest()


def network_settings(network: Any) -> dict[str, Any]:
    """Return a network's configuration, without where it came from and what stored it."""
    config = network.config if isinstance(network.config, dict) else network.config.to_dict()
    lost = ("transformers_version", "architectures", "dtype", "torch_dtype")
    return {k: v for k, v in config.items() if k not in lost and not k.startswith("_")}


class ImageCache:
    """A folder with one lossless PNG an image, shared by all runs and processes.

    A file appears whole or not at all. A killed run therefore loses nothing that it drew, and two
    processes can write one image at the same time. A damaged file is drawn again. Where no file can
    be written, the run goes on without keeping images.

    Args:
        folder: the folder whose subfolder `images/` holds the images.
        drawer: the `pipeline_fingerprint` of the pipeline that draws the images.
        installed: what changed that pipeline after the fingerprint was taken, such as an unlearned
            model's weights or a method that acts at inference. "" says that nothing did.
        settings: what else decides every image: the sampler, its steps, the negative prompt.
    """

    def __init__(self, folder: Path, drawer: str, installed: str = "", **settings: Any) -> None:
        self.folder = folder / "images"
        self.key = json.dumps([drawer, installed, settings], sort_keys=True, default=str)

    def path(self, *facts: Any) -> Path:
        """Return the file of the image that the facts, such as prompt and seed, decide."""
        text = f"{self.key}\n{json.dumps(facts)}".encode()
        name = hashlib.blake2b(text, digest_size=16).hexdigest()
        return self.folder / name[:2] / f"{name}.png"

    def get(self, size: tuple[int, int], *facts: Any) -> Tensor | None:
        """Return the image (3, H, W), uint8; None where there is no file, or a damaged one.

        Warns where the file is damaged.

        Args:
            size: (H, W) of such images.
            facts: what decides the image (see `path`).
        """
        path = self.path(*facts)
        try:
            image = read_image(path)
            if image.shape[1:] != size:
                raise ValueError(f"its size is {tuple(image.shape[1:])}, not {size}")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except ValueError as error:
            warnings.warn(f"{path}: damaged ({error}), so drawn again", stacklevel=2)
            return None
        return image

    def put(self, image: Tensor, *facts: Any) -> None:
        """Store an image (3, H, W), uint8; warn where the disk refuses it."""
        path = self.path(*facts)
        picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(path) as partial:
                picture.save(partial, format="PNG")
        except OSError as error:
            warnings.warn(f"{self.folder}: images are not kept ({error.strerror})", stacklevel=2)
