"""Seeded, batched image generation."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from torch import Tensor
from tqdm import tqdm

from unlearn.generation.image_cache import ImageCache, cache_folder
from unlearn.models.pipeline import denoiser

SCHEDULERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "dpm++": (DPMSolverMultistepScheduler, {}),
    "ddim": (DDIMScheduler, {"clip_sample": False}),  # latents are not clipped
    "own": (None, {}),  # the pipeline's
}


class SamplingRequest(NamedTuple):
    """What one random generator draws.

    Attributes:
        prompt: the prompt.
        seed: of the generator.
        guidance: scale of classifier-free guidance.
        size: (height, width) in pixels; None: the model's own.
        images: how many the generator draws, all in one call of the pipeline.
    """

    prompt: str
    seed: int
    guidance_scale: float
    size: tuple[int, int] | None = None
    images: int = 1


def default_batch_size(pipe: DiffusionPipeline) -> int:
    """Images a call: 32 up to 512 x 512 pixels, of larger ones as many as need no more memory."""
    return min(32, max(1, 32 * 512**2 // image_side(pipe) ** 2))


def image_side(pipe: DiffusionPipeline) -> int:
    """The pixels of a side of the images that the pipeline draws unless told otherwise."""
    return int(denoiser(pipe).config.sample_size * pipe.vae_scale_factor)


def sampling_scheduler(scheduler: Any, name: str | None) -> Any:
    """The scheduler that draws, of a pipeline's own.

    Args:
        scheduler: the pipeline's.
        name: a key of `SCHEDULERS`; None: DPM-Solver++, or a flow's own.

    Raises:
        ValueError: the scheduler is a flow's, which no other can take the place of.
    """
    flow = isinstance(scheduler, FlowMatchEulerDiscreteScheduler)
    name = name or ("own" if flow else "dpm++")
    kind, options = SCHEDULERS[name]
    if kind is None:
        return scheduler
    if flow:
        raise ValueError(
            f"evaluation.scheduler={name}: a flow model needs evaluation.scheduler=own"
        )
    return kind.from_config(scheduler.config, **options)


def generate(
    pipe: DiffusionPipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int,
    guidance_scale: float,
    precision: str = "32-true",
    batch_size: int | None = None,
    description: str = "generating",
    cached: str = "",
    installed: str = "",
) -> Tensor:
    """Images of the prompts, uint8 (N, 3, H, W), each of one generator.

    Args:
        pipe: the pipeline; its scheduler becomes DPM-Solver++, where it is not a flow's.
        prompts: N prompts.
        seeds: N seeds, one an image.
        steps: sampling steps.
        guidance: scale of classifier-free guidance.
        precision: "32-true" or "bf16-mixed", which autocasts the networks.
        batch_size: images a call; None: `default_batch_size`.
        description: of the progress bar.
        cached: the pipeline's `fingerprint`, by which the cache keeps the images, and only those
            that it lacks are drawn; "": none is kept.
        installed: what changed the pipeline, see `ImageCache`.
    """
    shots = [SamplingRequest(p, s, guidance_scale) for p, s in zip(prompts, seeds, strict=True)]
    how: dict[str, Any] = {"steps": steps, "precision": precision, "batch_size": batch_size}
    how |= {"description": description, "cached": cached, "installed": installed}
    images = dict(draw_requests(pipe, shots, **how))
    return torch.cat([images[number] for number in range(len(shots))])


def draw_requests(
    pipe: DiffusionPipeline,
    shots: Sequence[SamplingRequest],
    *,
    steps: int,
    scheduler: str | None = None,
    eta: float = 0.0,
    negative_prompt: str = "",
    precision: str = "32-true",
    batch_size: int | None = None,
    description: str = "generating",
    cached: str = "",
    installed: str = "",
) -> Iterator[tuple[int, Tensor]]:
    """The images of each shot, uint8 (images, 3, H, W), with its number; as they become ready.

    Generators are on the CPU. Shots of one image are drawn in batches padded to one size, so an
    image depends on its shot and the batch size alone. A shot of several images is one call, as
    the pipeline draws `num_images_per_prompt` images with one generator.

    Args:
        pipe: the pipeline; its scheduler is replaced.
        shots: what to draw.
        steps: sampling steps.
        scheduler: see `sampling_scheduler`.
        eta: of DDIM.
        negative_prompt: of every shot; "": none.
        precision: "32-true" or "bf16-mixed", which autocasts the networks.
        batch_size: images a call, of shots of one image; None: `default_batch_size`.
        description: of the progress bar.
        cached: the pipeline's `fingerprint`, by which the cache keeps the images, and only those
            that it lacks are drawn; "": none is kept.
        installed: what changed the pipeline, see `ImageCache`.

    Raises:
        ValueError: see `sampling_scheduler`.
    """
    pipe.scheduler = sampling_scheduler(pipe.scheduler, scheduler)
    batch_size = batch_size or default_batch_size(pipe)
    pipe.set_progress_bar_config(disable=True)
    sampler: dict[str, Any] = {"steps": steps, "eta": eta, "negative_prompt": negative_prompt}
    settings = {**sampler, "precision": precision, "batch_size": batch_size}
    cache = image_cache_for(pipe, cached, installed, settings) if cached else None
    mixed = torch.autocast(pipe.device.type, torch.bfloat16, enabled=precision == "bf16-mixed")
    missing, side = [], image_side(pipe)
    total = sum(shot.images for shot in shots)
    with tqdm(total=total, desc=description, unit="image") as progress:
        for number, shot in enumerate(shots):
            size = shot.size or (side, side)
            found = [cache.get(size, *shot, i) for i in range(shot.images)] if cache else [None]
            if any(image is None for image in found):
                missing.append(number)
                continue
            progress.update(shot.images)
            yield number, torch.stack(found)  # type: ignore[arg-type]
        for call in group_calls(shots, missing, batch_size):
            with mixed:
                drawn = call_pipeline(pipe, [shots[n] for n in call], batch_size, **sampler)
            for number, images in zip(call, drawn, strict=True):
                if cache:
                    for i, image in enumerate(images):
                        cache.put(image, *shots[number], i)
                progress.update(len(images))
                yield number, images


def image_cache_for(
    pipe: DiffusionPipeline, cached: str, installed: str, settings: dict[str, Any]
) -> ImageCache:
    """Return the cache of what the pipeline draws with these settings, see `draw_requests`."""
    changed = "encode_prompt" in vars(pipe)  # as every method that acts at inference does
    assert installed or not changed, "the cache would take it for its base model"
    schedule = {k: v for k, v in pipe.scheduler.config.items() if not k.startswith("_")}
    own = {"scheduler": type(pipe.scheduler).__name__, "schedule": schedule, **settings}
    return ImageCache(cache_folder(), cached, installed, **own)


def group_calls(
    shots: Sequence[SamplingRequest], numbers: list[int], batch_size: int
) -> Iterator[list[int]]:
    """The numbers of the shots in each call of the pipeline: of equal guidance and size."""
    alike: dict[Any, list[int]] = defaultdict(list)
    for number in numbers:
        shot = shots[number]
        if shot.images > 1:
            yield [number]
        else:
            alike[shot.guidance_scale, shot.size].append(number)
    for group in alike.values():
        for start in range(0, len(group), batch_size):
            yield group[start : start + batch_size]


def call_pipeline(
    pipe: DiffusionPipeline,
    shots: list[SamplingRequest],
    batch_size: int,
    *,
    steps: int,
    eta: float,
    negative_prompt: str,
) -> list[Tensor]:
    """The images of each shot, of one call: one shot of several images, or several of one."""
    first = shots[0]
    height, width = first.size or (None, None)
    generator: Any
    if first.images > 1:
        prompts = [first.prompt]
        generator = torch.Generator().manual_seed(first.seed)
    else:
        padding = batch_size - len(shots)
        prompts = [*(shot.prompt for shot in shots), *[""] * padding]
        seeds = [*(shot.seed for shot in shots), *[0] * padding]
        generator = [torch.Generator().manual_seed(seed) for seed in seeds]
    output = pipe(
        prompts,
        height=height,
        width=width,
        negative_prompt=[negative_prompt] * len(prompts) if negative_prompt else None,
        num_images_per_prompt=first.images,
        generator=generator,
        num_inference_steps=steps,
        guidance_scale=first.guidance_scale,
        output_type="pt",
        **({"eta": eta} if eta else {}),  # not every pipeline knows it
    ).images
    drawn = (output.float().clamp(0, 1) * 255).round().byte().cpu()
    return list(drawn.split(first.images)[: len(shots)])
