"""Compute CLIP features of images and texts, and the scores on them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel
from transformers.utils import logging as transformers_logging

from unlearn.utils.paths import EMBEDDED

WEIGHT = 2.5  # the factor w of CLIPScore (Hessel 2021, arXiv 2104.08718)


class ClipScorer:
    """A CLIP model with its tokenizer and its image preprocessing.

    Args:
        name: the model's name in tables.
        model: the CLIP model, frozen.
        tokenizer: turns texts into padded token ids.
        processor: turns images into pixel values.
    """

    def __init__(self, name: str, model: CLIPModel, tokenizer: Any, processor: Any) -> None:
        self.name = name
        self.model = model
        self.tokenizer = tokenizer
        self.processor = processor

    @classmethod
    def load(cls, source: str, device: str = "cpu") -> ClipScorer:
        """Load the fp32 CLIP at `source`: "emoji" (the embedded model's), a folder or a hub id.

        Raises:
            ValueError: `source` holds no CLIP in safetensors, or cannot be reached.
        """
        path = EMBEDDED / "clip" if source == "emoji" else Path(source)
        place = str(path) if path.exists() else source
        transformers_logging.disable_progress_bar()
        try:
            model, report = CLIPModel.from_pretrained(
                place, use_safetensors=True, dtype=torch.float32, output_loading_info=True
            )
            tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
            # PIL resizes as CLIP's authors do, and needs no torchvision
            processor = AutoImageProcessor.from_pretrained(
                place, backend="pil", trust_remote_code=False
            )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise ValueError(
                f"evaluation.clip={source!r}: neither a folder nor a reachable hub id that holds a "
                "CLIP in safetensors, its tokenizer and its image processor: "
                + " ".join(str(error).split())
            ) from error
        if missing := sorted(report["missing_keys"]):  # transformers would leave them random
            raise ValueError(
                f"evaluation.clip={source!r}: no whole CLIP; it lacks {len(missing)} weights, "
                f"such as {missing[0]!r}"
            )
        name = path.name if source != "emoji" and path.exists() else source
        return cls(name, model.eval().requires_grad_(False).to(device), tokenizer, processor)

    @torch.no_grad()
    def image_features(self, images: Tensor, batch_size: int = 64) -> Tensor:
        """Return unit features (N, D) of uint8 images (N, 3, H, W), on the CPU."""
        features = []
        for chunk in images.split(batch_size):
            pixels = self.processor(
                list(chunk.cpu().numpy()), input_data_format="channels_first", return_tensors="pt"
            ).pixel_values
            output = self.model.get_image_features(pixel_values=pixels.to(self.model.device))
            features.append(F.normalize(output.pooler_output.float(), dim=-1).cpu())
        return torch.cat(features)

    @torch.no_grad()
    def text_features(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """Return unit features (M, D) of M texts, on the CPU; texts too long for CLIP are cut."""
        features = []
        for start in range(0, len(texts), batch_size):
            # no attention mask: attention is causal, so no token sees the padding after its text
            tokens = self.tokenizer(
                list(texts[start : start + batch_size]),
                padding=True,
                truncation=True,
                return_tensors="pt",
            ).input_ids
            output = self.model.get_text_features(tokens.to(self.model.device))
            features.append(F.normalize(output.pooler_output.float(), dim=-1).cpu())
        return torch.cat(features)


def clip_scores(image_features: Tensor, text_features: Tensor) -> Tensor:
    """Return the CLIP score (N,) of each pair of image and text: 100 · 2.5 · max(cos, 0).

    Each pair is clamped by itself.

    Source: CLIPScore (Hessel 2021, arXiv 2104.08718), in per cent as SPM (arXiv 2312.16145) does.

    Args:
        image_features: features of the images, (N, D).
        text_features: features of the texts, one an image (N, D) or one for all (1, D).
    """
    return 100 * WEIGHT * F.cosine_similarity(image_features, text_features, dim=-1).clamp(min=0)


def clip_choices(
    image_features: Tensor, concept_features: Tensor, anchor_features: Tensor
) -> Tensor:
    """Return flags (N,): whether each image scores higher with the concept than with the anchor.

    The mean is the CLIP accuracy of Concept Ablation (arXiv 2303.13516): lower forgets more.

    Args:
        image_features: features of the images, (N, D).
        concept_features: features of captions with the concept, (N, D) or (1, D).
        anchor_features: features of the same captions with the anchor, (N, D) or (1, D).
    """
    scores = clip_scores(image_features, concept_features)
    return scores > clip_scores(image_features, anchor_features)


def clip_errors(image_features: Tensor, concept_features: Tensor, empty_features: Tensor) -> Tensor:
    """Return flags (N,): whether the concept fails to outscore the empty text on each image.

    The mean is the CLIP error rate of SPM (arXiv 2312.16145), 1 − mean[CS(concept) > CS("")]:
    higher forgets more; a tie is an error.

    Args:
        image_features: features of the images, (N, D).
        concept_features: features of the concept's word, (N, D) or (1, D).
        empty_features: features of "", (1, D).
    """
    return ~clip_choices(image_features, concept_features, empty_features)
