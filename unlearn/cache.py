"""Images on disk, named by the hash of all that decides them."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor

from unlearn.backbone import networks_of
from unlearn.files import whole


def cache_folder() -> Path:
    """`$UNLEARN_CACHE`, or `unlearn` in the user's cache folder."""
    own = os.environ.get("UNLEARN_CACHE")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(own) if own else home / "unlearn"


def fingerprint(pipe: DiffusionPipeline) -> str:
    """A hash of the pipeline's weights, tokenizer and scheduler, and of what computes with them."""
    digest = hashlib.blake2b(digest_size=16)
    for module in networks_of(pipe).values():
        digest.update(str(type(module)).encode())
        for name, tensor in module.state_dict().items():
            digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}{tensor.device.type}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    schedule = {k: v for k, v in pipe.scheduler.config.items() if not k.startswith("_")}
    # without what diffusers notes for itself, some of it in an order that no two processes share
    tokenizers = [t for t in (pipe.tokenizer, getattr(pipe, "tokenizer_2", None)) if t]
    facts = [f for t in tokenizers for f in (t.get_vocab(), t.padding_side)]
    if zeros := pipe.config.get("force_zeros_for_empty_prompt"):
        facts.append(zeros)
    facts += [type(pipe.scheduler).__name__, schedule]
    facts += [torch.__version__, diffusers.__version__]
    digest.update(json.dumps(facts, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def digest(weights: Path) -> str:
    """The hash of a weights file, with all that it installs; "" for a whole pipeline's folder."""
    if weights.is_dir():
        return ""
    with weights.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class ImageCache:
    """One lossless PNG an image, shared by all runs and processes.

    A file appears whole or not at all, so a killed run loses nothing that it drew, and two
    processes can write one image at the same time. A file that is damaged is drawn again; where
    none can be written, the run goes on without keeping them.

    Args:
        folder: where the images lie, in `images/`.
        pipe: the pipeline that draws them.
        installed: names what else than its weights changed the pipeline, such as a method that
            acts at inference; "": nothing did.
        settings: what else decides every image: steps, the negative prompt.
    """

    def __init__(
        self, folder: Path, pipe: DiffusionPipeline, installed: str = "", **settings: Any
    ) -> None:
        changed = "encode_prompt" in vars(pipe)  # as every method that acts at inference does
        assert installed or not changed, "the cache would take the pipeline for its base model"
        self.folder = folder / "images"
        self.key = json.dumps([fingerprint(pipe), installed, settings], sort_keys=True)

    def path(self, *facts: Any) -> Path:
        """The file of the image that the facts, such as prompt and seed, decide."""
        text = f"{self.key}\n{json.dumps(facts)}".encode()
        name = hashlib.blake2b(text, digest_size=16).hexdigest()
        return self.folder / name[:2] / f"{name}.png"

    def get(self, *facts: Any) -> Tensor | None:
        """The image (3, H, W), uint8; None where it is not there, or damaged, which is said."""
        path = self.path(*facts)
        try:
            with Image.open(path) as image:
                image.verify()  # compares all checksums, as decoding does not
            with Image.open(path) as image:
                return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, SyntaxError) as error:  # truncated, changed, or not a PNG
            warnings.warn(f"{path}: damaged ({error}), so drawn again", stacklevel=2)
            return None

    def put(self, image: Tensor, *facts: Any) -> None:
        """Store an image (3, H, W), uint8."""
        path = self.path(*facts)
        picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole(path) as partial:
                picture.save(partial, format="PNG")
        except OSError as error:
            warnings.warn(f"{self.folder}: images are not kept ({error.strerror})", stacklevel=2)
