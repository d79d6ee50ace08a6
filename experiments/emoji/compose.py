"""Compose training images and captions from the art, on the fly and seeded."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from unlearn.concepts.vocabulary import Vocabulary, fill_template


@dataclass(frozen=True)
class Composition:
    """A batch of compositions: images (B, 3, 64, 64) in [-1, 1] and what they show (B,)."""

    images: Tensor
    objects: Tensor
    styles: Tensor
    backgrounds: Tensor


def compose(
    art: Tensor, vocabulary: Vocabulary, batch: int, generator: torch.Generator
) -> Composition:
    """Random objects in random styles on random backgrounds, scaled and shifted.

    Args:
        art: uint8 RGBA (styles, objects, 4, 64, 64).
        vocabulary: gives the background colours.
        batch: number of images.
        generator: decides everything; the same state gives the same batch.
    """
    num_styles, num_objects = art.shape[:2]
    colours = torch.tensor(list(vocabulary.backgrounds.values()), dtype=torch.float32) / 255
    objects = torch.randint(num_objects, (batch,), generator=generator)
    styles = torch.randint(num_styles, (batch,), generator=generator)
    backgrounds = torch.randint(len(colours), (batch,), generator=generator)
    rgba = art[styles, objects].float() / 255
    premultiplied = torch.cat([rgba[:, :3] * rgba[:, 3:], rgba[:, 3:]], dim=1)
    scale = 0.8 + 0.15 * torch.rand(batch, generator=generator)
    shift = (torch.rand(batch, 2, generator=generator) * 2 - 1) * (1 - scale)[:, None]
    theta = torch.zeros(batch, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = 1 / scale
    theta[:, :, 2] = -shift / scale[:, None]
    grid = F.affine_grid(theta, [batch, 4, *art.shape[-2:]], align_corners=False)
    warped = F.grid_sample(premultiplied, grid, align_corners=False)
    images = warped[:, :3] + (1 - warped[:, 3:]) * colours[backgrounds][:, :, None, None]
    return Composition(images.clamp(0, 1) * 2 - 1, objects, styles, backgrounds)


def caption(
    vocabulary: Vocabulary, name: str, style: str | None, background: str | None, rng: random.Random
) -> str:
    """A random caption: object or synonym × template × optional style × optional background."""
    entry = vocabulary.objects[name]
    noun = rng.choice(entry.synonyms) if rng.random() < 0.3 else name
    text = fill_template(
        rng.choice([t for part in vocabulary.templates.values() for t in part]), noun
    )
    if style is not None:
        phrases = [p for part in vocabulary.style_phrases.values() for p in part]
        text = rng.choice(phrases).format(p=text, t=style)
    if background is not None:
        text = f"{text} {rng.choice(vocabulary.background_phrases).format(background)}"
    return text
