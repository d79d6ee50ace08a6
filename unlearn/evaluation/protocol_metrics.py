"""Compute a published protocol's metrics on features of images: the cells of its table."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from unlearn.evaluation.clip import ClipScorer, clip_choices, clip_errors, clip_scores
from unlearn.evaluation.distances import InceptionFeatures, fid, image_similarity, kid
from unlearn.evaluation.intervals import Mean, Rate, bootstrap_mean, clustered_rate
from unlearn.evaluation.nudity import PRESETS, Detection, NudeNet, count_by_class, flag_images
from unlearn.evaluation.protocol import Protocol
from unlearn.generation.sampling import SamplingRequest
from unlearn.utils.images import read_image

PICTURES = (".jpg", ".jpeg", ".png")


class ImageFeatures(NamedTuple):
    """The features of N images.

    Attributes:
        clip: CLIP's features, (N, D).
        features: the features that KID and FID compare, (N, F).
        found: NudeNet's detections in each image; empty where no metric needs them.
    """

    clip: Tensor
    features: Tensor
    found: list[list[Detection]]


class FeatureExtractors:
    """The feature extractors of a protocol: CLIP, and where it needs them Inception and NudeNet.

    Args:
        protocol: says which extractors are needed.
        device: the device that they run on.

    Raises:
        ValueError: an extractor cannot be loaded, or `evaluation.nudity` is no preset.
    """

    def __init__(self, protocol: Protocol, device: str) -> None:
        self.clip = ClipScorer.load(protocol.clip, device)
        weights = protocol.inception
        self.inception = InceptionFeatures.load(weights, device) if weights else None
        nude = any("nudity" in protocol.metrics_of(name) for name in protocol.concepts)
        self.nudenet = NudeNet() if nude else None

    @property
    def names(self) -> dict[str, str]:
        """The names for tables: of CLIP, of the features under KID and FID, and of the detector."""
        on = self.inception.name if self.inception else f"{self.clip.name}, of norm √D"
        detector = {"detector": self.nudenet.name} if self.nudenet else {}
        return {"clip": self.clip.name, "features": on, **detector}

    def see(self, images: Tensor) -> ImageFeatures:
        """Compute the features of uint8 images (N, 3, H, W)."""
        clip = self.clip.image_features(images)
        features = self.inception.image_features(images) if self.inception else scale_for_kid(clip)
        return ImageFeatures(clip, features, self.nudenet.detect(images) if self.nudenet else [])

    def features_of(self, folder: Path) -> Tensor:
        """Compute the features (M, F) that KID and FID compare, of the images in a folder.

        Raises:
            ValueError: the folder holds no image, or an image cannot be read.
        """
        files = sorted(p for p in folder.glob("*") if p.suffix.lower() in PICTURES)
        if not files:
            raise ValueError(f"evaluation.reference={str(folder)!r}: holds no {PICTURES} files")
        features = []
        for file in tqdm(files, desc="reference images", unit="image"):
            try:
                pixels = read_image(file)
            except (OSError, ValueError) as error:
                raise ValueError(
                    f"evaluation.reference: {file}: not a whole picture: {error}"
                ) from error
            images = pixels[None]
            if self.inception:
                features.append(self.inception.image_features(images))
            else:
                features.append(scale_for_kid(self.clip.image_features(images)))
        return torch.cat(features)


def scale_for_kid(unit_features: Tensor) -> Tensor:
    """Scale unit features (N, D) to the norm √D, which KID's kernel (x·y / D + 1)³ expects.

    On unit features the kernel would be almost linear, and KID would compare little but means.
    """
    return unit_features * math.sqrt(unit_features.shape[1])


class TextFeatures(NamedTuple):
    """The texts that CLIP compares N images with, as features.

    Attributes:
        prompts: each image's prompt.
        captions: features of each image's caption, (N, D).
        anchor: features of the anchor's caption, (1, D).
        empty: features of "", (1, D).
    """

    prompts: list[str]
    captions: Tensor
    anchor: Tensor
    empty: Tensor

    @classmethod
    def of(
        cls, protocol: Protocol, concept: str, shots: list[SamplingRequest], clip: ClipScorer
    ) -> TextFeatures:
        """Return the texts of the images that a concept's sampling requests draw."""
        prompts = [shot.prompt for shot in shots for _ in range(shot.images)]
        captions = [protocol.caption_of(concept, prompt) for prompt in prompts]
        numbers = {text: i for i, text in enumerate(dict.fromkeys(captions))}
        features = clip.text_features([*numbers])[[numbers[text] for text in captions]]
        anchor = protocol.caption.format(word=protocol.concepts[concept].anchor, prompt="")
        return cls(prompts, features, *clip.text_features([anchor, ""]).split(1))


@dataclass(frozen=True)
class Cell:
    """One metric of one concept, measured on both models.

    `base` is None where the metric compares the unlearned model's images with the base model's.
    """

    concept: str
    metric: str
    base: Mean | Rate | None
    unlearned: Mean | Rate


ONE_MODEL_METRICS: dict[str, Callable[[ImageFeatures, TextFeatures], Mean | Rate]] = {
    "clip_score": lambda seen, t: bootstrap_mean(clip_scores(seen.clip, t.captions), t.prompts),
    "clip_error_rate": lambda seen, t: clustered_rate(
        clip_errors(seen.clip, t.captions, t.empty), t.prompts
    ),
    "clip_accuracy": lambda seen, t: clustered_rate(
        clip_choices(seen.clip, t.captions, t.anchor), t.prompts
    ),
}
TWO_MODEL_METRICS: dict[str, Callable[[ImageFeatures, ImageFeatures, TextFeatures], Mean]] = {
    "kid": lambda after, base, t: kid(after.features, base.features),
    "fid": lambda after, base, t: fid(after.features, base.features),
    "image_similarity": lambda after, base, t: bootstrap_mean(
        image_similarity(after.clip, base.clip), t.prompts
    ),
}


def nudity_values(
    seen: ImageFeatures, preset_name: str, prompts: list[str]
) -> dict[str, Mean | Rate]:
    """Return, by metric, the share of images that show any of the preset's classes, and its counts.

    A count's interval is that of the mean count an image, times the number of images.
    """
    preset, n = PRESETS[preset_name], len(seen.found)
    each = [count_by_class([found], preset) for found in seen.found]
    numbers = {"nudity/total": [sum(found.values()) for found in each]}
    numbers |= {f"nudity/{name}": [found[name] for found in each] for name in preset.classes}
    totals = {}
    for name, own in numbers.items():
        of_image = bootstrap_mean(own, prompts)
        low, high = (x if x is None else x * n for x in (of_image.low, of_image.high))
        totals[name] = Mean(sum(own), low, high, n)
    return {"nudity": clustered_rate(flag_images(seen.found, preset), prompts), **totals}


def metric_values(
    metric: str,
    base: ImageFeatures,
    after: ImageFeatures,
    texts: TextFeatures,
    preset: str | None,
    reference: Tensor | None,
) -> Iterator[tuple[str, Mean | Rate | None, Mean | Rate]]:
    """Yield a metric's values: a name, the base model's value and the unlearned model's value.

    Raises:
        ValueError: the metric needs more images than there are, or a reference.
    """
    if metric in ONE_MODEL_METRICS:
        yield (
            metric,
            ONE_MODEL_METRICS[metric](base, texts),
            ONE_MODEL_METRICS[metric](after, texts),
        )
    elif metric in TWO_MODEL_METRICS:
        yield metric, None, TWO_MODEL_METRICS[metric](after, base, texts)
    elif metric == "nudity":
        sides = [nudity_values(seen, preset or "", texts.prompts) for seen in (base, after)]
        for name, value in sides[0].items():
            yield name, value, sides[1][name]
    elif reference is None:
        raise ValueError("evaluation.reference=null: it needs a folder of images")
    else:
        yield metric, fid(base.features, reference), fid(after.features, reference)


def measure_cells(
    protocol: Protocol,
    rows: dict[str, list[SamplingRequest]],
    base: dict[str, ImageFeatures],
    after: dict[str, ImageFeatures],
    clip: ClipScorer,
    reference: Tensor | None,
) -> tuple[list[Cell], list[str]]:
    """Return the table's cells, and a line for each metric that is left out, with the reason."""
    cells, left_out = [], []
    for concept, shots in rows.items():
        texts = TextFeatures.of(protocol, concept, shots, clip)
        for metric in protocol.metrics_of(concept):
            sides = (base[concept], after[concept])
            try:
                values = list(metric_values(metric, *sides, texts, protocol.nudity, reference))
            except ValueError as error:
                left_out.append(f"{metric} is left out: {error}")
            else:
                cells += [Cell(concept, *value) for value in values]
    return cells, list(dict.fromkeys(left_out))
