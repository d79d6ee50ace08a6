"""Classify object and style of images, with a judge that was trained on real art."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import ConvNextConfig, ConvNextModel, ResNetConfig, ResNetModel

from unlearn.concepts.vocabulary import load_vocabulary

ARCHITECTURES: dict[str, tuple[Any, Any]] = {
    "resnet": (ResNetConfig, ResNetModel),
    "convnext": (ConvNextConfig, ConvNextModel),
}


class Verdict(NamedTuple):
    """The names that a judge gives each of N images.

    Attributes:
        objects: N names.
        styles: N names; "" is no style.
        broken: flags (N,); None where the judge cannot tell.
    """

    objects: list[str]
    styles: list[str]
    broken: Tensor | None

    def of(self, chosen: slice) -> Verdict:
        """Return the verdict on a slice of the images."""
        broken = None if self.broken is None else self.broken[chosen]
        return Verdict(self.objects[chosen], self.styles[chosen], broken)


class Judge(nn.Module):
    """A classifier: a backbone from transformers under an object head and a style head.

    Args:
        architecture: "resnet" or "convnext".
        backbone: keyword arguments of the backbone's config class.
        num_objects: classes of the object head.
        num_styles: classes of the style head.
        broken_threshold: object confidence under which an image counts as broken; fixed on
            held-out art.

    Attributes:
        note: what a table must say of the judge; empty: nothing.
    """

    note = ""

    def __init__(
        self,
        architecture: str,
        backbone: dict[str, Any],
        num_objects: int,
        num_styles: int,
        broken_threshold: float = 0.0,
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "architecture": architecture,
            "backbone": backbone,
            "num_objects": num_objects,
            "num_styles": num_styles,
            "broken_threshold": broken_threshold,
        }
        config_class, model_class = ARCHITECTURES[architecture]
        self.backbone = model_class(config_class(**backbone))
        width = backbone["hidden_sizes"][-1]
        self.object_head = nn.Linear(width, num_objects)
        self.style_head = nn.Linear(width, num_styles)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return object and style logits of images (B, 3, 64, 64) in [-1, 1]."""
        features = self.backbone(images).pooler_output.flatten(1)
        return self.object_head(features), self.style_head(features)

    @torch.inference_mode()
    def classify(self, images: Tensor, batch_size: int = 128) -> tuple[Tensor, Tensor, Tensor]:
        """Return each image's object class, style class and confidence in the object, (N,) each.

        Args:
            images: uint8 (N, 3, 64, 64).
            batch_size: images a forward pass.
        """
        confidences, objects, styles = [], [], []
        for chunk in images.split(batch_size):
            object_logits, style_logits = self(chunk.float() / 127.5 - 1)
            top = object_logits.softmax(-1).max(-1)
            confidences.append(top.values)
            objects.append(top.indices)
            styles.append(style_logits.argmax(-1))
        return torch.cat(objects), torch.cat(styles), torch.cat(confidences)

    def judge(self, images: Tensor) -> Verdict:
        """Return the verdict on uint8 images (N, 3, 64, 64), in the vocabulary's names."""
        objects, styles, confidence = self.classify(images)
        words = load_vocabulary()
        return Verdict(
            [words.names[i] for i in objects.tolist()],
            [words.styles[i] for i in styles.tolist()],
            confidence < float(self.config["broken_threshold"]),
        )

    def save(self, folder: Path) -> None:
        """Write `config.json` and fp16 `model.safetensors` to a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        state = {
            k: (v.half() if v.is_floating_point() else v).contiguous()
            for k, v in self.state_dict().items()
        }
        save_file(state, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(self.config, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Judge:
        """Load the judge stored in `folder`, in fp32 and eval mode.

        Raises:
            ValueError: `folder` holds no judge, or a damaged one.
        """
        if not (folder / "model.safetensors").exists():
            raise ValueError(
                f"evaluation.judge={str(folder)!r}: no model.safetensors in that folder"
            )
        try:
            judge = cls(**json.loads((folder / "config.json").read_text(encoding="utf-8")))
            judge.load_state_dict(
                {
                    k: v.float() if v.is_floating_point() else v
                    for k, v in load_file(folder / "model.safetensors").items()
                }
            )
        except (
            OSError,
            ValueError,
            TypeError,
            LookupError,
            RuntimeError,
            SafetensorError,
        ) as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"evaluation.judge={str(folder)!r}: not a whole judge: {reason}"
            ) from error
        return judge.eval().requires_grad_(False)
