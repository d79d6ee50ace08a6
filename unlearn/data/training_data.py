"""Turn base-model images into latents, and prompts into text states, once before training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline
from torch import Tensor

from unlearn.concepts.concept import Concept
from unlearn.concepts.prompts import assign_prompts_to_images, relearn_prompts, training_pairs
from unlearn.generation.sampling import Sampler, default_batch_size, generate
from unlearn.models.text_states import encode_prompts
from unlearn.utils.options import option


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """The section `data` of a configuration: the images to train on, which the base model draws."""

    images: int = option(help="anchor images", at_least=2, at_most=10**7)
    relearn_images: int = option(
        help="images of what must survive; 0: relearn on the anchor images, as the paper",
        at_least=0,
        at_most=10**7,
    )
    num_inference_steps: int = option(help="steps of the sampler", at_least=1, at_most=1000)
    flip: bool = option(help="also train on each image mirrored")
    rescale: bool = option(
        help="also train on each anchor image at another scale, with a phrase that says so; not "
        "for a style"
    )


class ImageSet(NamedTuple):
    """Images drawn by the base model, encoded once, and the text states of their prompts.

    A text is laid out as in `unlearn.models.text_states`, which can add a row to T.

    Attributes:
        mean: posterior means (N, C, h, w).
        std: posterior standard deviations (N, C, h, w).
        prompt: the number of the prompt that each image was drawn from (N,).
        states: text states of the prompts (P, T, D).
        phrase: what was done to each image (N,): 0 nothing, i the i-th of `SCALE_PHRASES`.
    """

    mean: Tensor
    std: Tensor
    prompt: Tensor
    states: Tensor
    phrase: Tensor


class TrainingData(NamedTuple):
    """All that training needs of the VAE and the text encoder.

    Attributes:
        anchor: images of the anchor concept.
        target_states: text states of the target prompts (1 or 5, P, T, D), one for each anchor
            prompt: plain, then with each phrase of `SCALE_PHRASES`.
        relearn: images of what must survive; None where the anchor's images serve.
    """

    anchor: ImageSet
    target_states: Tensor
    relearn: ImageSet | None = None


SCALE_PHRASES = ("far away", "very small", "zoomed in", "close up")
SHRINK, ENLARGE = (0.4, 0.6), (1.2, 1.4)  # scales of the first two, and of the last two


def with_scale_phrases(prompts: list[str]) -> list[list[str]]:
    """Return the prompts as they are, then the prompts with each of `SCALE_PHRASES` added."""
    return [prompts, *([f"{p}, {phrase}" for p in prompts] for phrase in SCALE_PHRASES)]


def rescale_images(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return each image at another scale, and the number of its phrase in `SCALE_PHRASES`, from 1.

    An image is made smaller on grey, or larger and cropped.

    Args:
        images: uint8 (N, 3, H, W).
        generator: draws the scales and the phrases.

    Source: the augmentation of DoCo's reference implementation, after Custom Diffusion (Kumari et
    al. 2023, section 3.2).
    """
    size = images.shape[-1]
    phrases = torch.randint(1, len(SCALE_PHRASES) + 1, (len(images),), generator=generator)
    output = torch.full_like(images, 128)
    for i, phrase in enumerate(phrases.tolist()):
        low, high = SHRINK if phrase <= 2 else ENLARGE
        scale = low + (high - low) * torch.rand((), generator=generator).item()
        side = round(scale * size)
        image = F.interpolate(
            images[i : i + 1].float(), (side, side), mode="bilinear", antialias=True
        )
        image = image.round().clamp(0, 255).to(torch.uint8)[0]
        edge = abs(side - size) // 2
        if side <= size:
            output[i, :, edge : edge + side, edge : edge + side] = image
        else:
            output[i] = image[:, edge : edge + size, edge : edge + size]
    return output, phrases


@torch.inference_mode()
def draw_images(
    pipe: DiffusionPipeline,
    prompts: list[str],
    order: list[int],
    seeds: range,
    sampler: Sampler,
    *,
    description: str,
    flip: bool,
    rescale: bool,
    cached: str = "",
) -> ImageSet:
    """Draw base-model images of prompts, and return their posterior moments and text states.

    Args:
        pipe: the base pipeline.
        prompts: P prompts.
        order: the number of each image's prompt.
        seeds: the seed of each image.
        sampler: the settings that the images are drawn with.
        description: the label of the progress bar.
        flip: whether to add each image mirrored.
        rescale: whether to add each image once more at another scale (see `rescale_images`).
        cached: the fingerprint under which the cache keeps the images (see `generate`).
    """
    states = encode_prompts(pipe, prompts).cpu()
    prompt = torch.tensor(order)
    texts = [prompts[i] for i in order]
    images = generate(pipe, texts, seeds, sampler, description=description, cached=cached)
    phrase = torch.zeros(len(images), dtype=torch.long)
    if rescale:
        scaled, phrases = rescale_images(images, torch.Generator().manual_seed(seeds.start))
        images, phrase = torch.cat([images, scaled]), torch.cat([phrase, phrases])
    if flip:
        images, phrase = torch.cat([images, images.flip(-1)]), phrase.repeat(2)
    moments = []
    for chunk in images.split(sampler.batch_size or default_batch_size(pipe)):
        # the VAE takes pixels in [-1, 1]
        posterior = pipe.vae.encode((chunk.float() / 127.5 - 1).to(pipe.device)).latent_dist
        moments.append(torch.stack([posterior.mean, posterior.std]).cpu())
    mean, std = torch.cat(moments, dim=1)
    scale, shift = pipe.vae.config.scaling_factor, pipe.vae.config.shift_factor or 0.0
    mean, std = (mean - shift) * scale, std * scale
    # the rescaled and the mirrored images follow in the same order
    prompt = prompt.repeat(len(images) // len(prompt))
    return ImageSet(mean, std, prompt, states, phrase)


def make_training_data(
    pipe: DiffusionPipeline,
    concept: Concept,
    options: DataOptions,
    sampler: Sampler,
    *,
    seed: int,
    images_of: str = "anchor",
    cached: str = "",
) -> TrainingData:
    """Draw the anchor images and the relearn images with the base model.

    Args:
        pipe: the base pipeline.
        concept: the concept, which gives the prompts.
        options: how many images to draw, and what else to make of each.
        sampler: the settings that the images are drawn with.
        seed: the run's seed. Runs of other seeds, with as many images in all, share no image seed.
        images_of: "anchor" or "target": the prompts that the unlearn half's images are drawn from.
            Either way, training pairs the images with the target prompts and the anchor prompts.
        cached: the fingerprint under which the cache keeps the images (see `generate`).

    Raises:
        ValueError: a prompt is too long.
    """
    anchors, targets = map(list, zip(*training_pairs(concept), strict=True))
    total = options.images + options.relearn_images
    seeds = range(seed * total, (seed + 1) * total)
    rescale = options.rescale and all(part.kind != "style" for part in concept.members)
    phrased = with_scale_phrases(targets) if rescale else [targets]
    target_states = torch.stack([encode_prompts(pipe, texts).cpu() for texts in phrased])
    how: dict[str, Any] = {"flip": options.flip, "cached": cached}
    drawn, label = (targets if images_of == "target" else anchors), f"{images_of} images"
    order = assign_prompts_to_images(concept, training_pairs, options.images)
    anchor = draw_images(
        pipe, drawn, order, seeds[: options.images], sampler,
        description=label, rescale=rescale, **how,
    )  # fmt: skip
    if images_of == "target":
        anchor = anchor._replace(states=encode_prompts(pipe, anchors).cpu())
    if not options.relearn_images:
        return TrainingData(anchor, target_states)
    prompts = relearn_prompts(concept)
    order = assign_prompts_to_images(concept, relearn_prompts, options.relearn_images)
    relearn = draw_images(
        pipe, prompts, order, seeds[options.images :], sampler,
        description="relearn images", rescale=False, **how,
    )  # fmt: skip
    return TrainingData(anchor, target_states, relearn)
