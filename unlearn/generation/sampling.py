"""Generate images, seeded and in batches."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
from unlearn.models.noise_schedule import check_scheduler
from unlearn.models.pipeline import get_denoiser

SCHEDULERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "dpm++": (DPMSolverMultistepScheduler, {}),
    "ddim": (DDIMScheduler, {"clip_sample": False}),  # latents are not clipped
    "own": (None, {}),  # the pipeline's
}


class SamplingRequest(NamedTuple):
    """The images that one random generator draws.

    Attributes:
        prompt: the prompt.
        seed: the seed of the generator.
        guidance_scale: the scale of classifier-free guidance.
        size: (height, width) in pixels; None is the model's own size.
        images: how many images the generator draws, all in one call of the pipeline.
    """

    prompt: str
    seed: int
    guidance_scale: float
    size: tuple[int, int] | None = None
    images: int = 1


def default_batch_size(pipe: DiffusionPipeline) -> int:
    """Return how many images one call draws.

    The number is 32 for images up to 512 x 512 pixels. For larger images it is the number that
    needs no more memory than those 32.
    """
    return min(32, max(1, 32 * 512**2 // image_side(pipe) ** 2))


def image_side(pipe: DiffusionPipeline) -> int:
    """Return the side, in pixels, of the images that the pipeline draws unless told otherwise."""
    return int(get_denoiser(pipe).config.sample_size * pipe.vae_scale_factor)


def sampling_scheduler(scheduler: Any, name: str | None) -> Any:
    """Return the scheduler that draws, made from the pipeline's own.

    Args:
        scheduler: the pipeline's own scheduler.
        name: a key of `SCHEDULERS`; None is DPM-Solver++, or for a flow its own scheduler.

    Raises:
        ValueError: the scheduler is not known, or is a flow's, which no other can replace.
    """
    check_scheduler(type(scheduler).__name__, scheduler.config)
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


@dataclass(frozen=True)
class Sampler:
    """The settings that images are drawn with.

    Attributes:
        num_inference_steps: the number of the scheduler's steps.
        guidance_scale: the scale of classifier-free guidance, where a request has none of its own.
        precision: "32-true" or "bf16-mixed", which autocasts the networks.
        batch_size: images a call, for requests of one image; None is `default_batch_size`.
        scheduler: the name of the scheduler (see `sampling_scheduler`).
        eta: DDIM's η.
        negative_prompt: the negative prompt of every request; "" is none.
    """

    num_inference_steps: int
    guidance_scale: float
    precision: str = "32-true"
    batch_size: int | None = None
    scheduler: str | None = None
    eta: float = 0.0
    negative_prompt: str = ""


def generate(
    pipe: DiffusionPipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    sampler: Sampler,
    *,
    description: str = "generating",
    cached: str = "",
    installed: str = "",
) -> Tensor:
    """Draw one image a prompt, each with a generator of its own, as uint8 (N, 3, H, W).

    Args:
        pipe: the pipeline; the sampler's scheduler replaces its own.
        prompts: N prompts.
        seeds: N seeds, one an image.
        sampler: the settings that the images are drawn with.
        description: the label of the progress bar.
        cached: the pipeline's `pipeline_fingerprint`, under which the cache keeps the images. Only
            images that the cache lacks are drawn. "" keeps none.
        installed: what changed the pipeline (see `ImageCache`).
    """
    scale = sampler.guidance_scale
    requests = [SamplingRequest(p, s, scale) for p, s in zip(prompts, seeds, strict=True)]
    how: dict[str, Any] = {"description": description, "cached": cached, "installed": installed}
    images = dict(draw_requests(pipe, requests, sampler, **how))
    return torch.cat([images[number] for number in range(len(requests))])


def draw_requests(
    pipe: DiffusionPipeline,
    requests: Sequence[SamplingRequest],
    sampler: Sampler,
    *,
    description: str = "generating",
    cached: str = "",
    installed: str = "",
) -> Iterator[tuple[int, Tensor]]:
    """Yield each request's number and images, uint8 (images, 3, H, W), as they become ready.

    Generators are on the CPU. Requests of one image are drawn in batches padded to one size, so an
    image depends on its request and the batch size alone. A request of several images is one call,
    in which the pipeline draws `num_images_per_prompt` images with one generator.

    Args:
        pipe: the pipeline; the sampler's scheduler replaces its own.
        requests: what to draw.
        sampler: the settings that the images are drawn with; guidance is each request's own.
        description: the label of the progress bar.
        cached: the pipeline's `pipeline_fingerprint`, under which the cache keeps the images. Only
            images that the cache lacks are drawn. "" keeps none.
        installed: what changed the pipeline (see `ImageCache`).

    Raises:
        ValueError: the pipeline cannot take the sampler's scheduler (see `sampling_scheduler`).
    """
    pipe.scheduler = sampling_scheduler(pipe.scheduler, sampler.scheduler)
    batch_size = sampler.batch_size or default_batch_size(pipe)
    pipe.set_progress_bar_config(disable=True)
    cache = image_cache_for(pipe, cached, installed, sampler, batch_size) if cached else None
    bf16 = sampler.precision == "bf16-mixed"
    mixed = torch.autocast(pipe.device.type, torch.bfloat16, enabled=bf16)
    missing, side = [], image_side(pipe)
    total = sum(request.images for request in requests)
    with tqdm(total=total, desc=description, unit="image") as progress:
        for number, request in enumerate(requests):
            size = request.size or (side, side)
            found = (
                [cache.get(size, *request, i) for i in range(request.images)] if cache else [None]
            )
            if any(image is None for image in found):
                missing.append(number)
                continue
            progress.update(request.images)
            yield number, torch.stack(found)  # type: ignore[arg-type]
        for call in group_calls(requests, missing, batch_size):
            with mixed:
                drawn = call_pipeline(pipe, [requests[n] for n in call], batch_size, sampler)
            for number, images in zip(call, drawn, strict=True):
                if cache:
                    for i, image in enumerate(images):
                        cache.put(image, *requests[number], i)
                progress.update(len(images))
                yield number, images


def image_cache_for(
    pipe: DiffusionPipeline, cached: str, installed: str, sampler: Sampler, batch_size: int
) -> ImageCache:
    """Return the cache of what the pipeline draws with its scheduler and this sampler."""
    changed = "encode_prompt" in vars(pipe)  # as every method that acts at inference does
    assert installed or not changed, "the cache would take it for its base model"
    schedule = {k: v for k, v in pipe.scheduler.config.items() if not k.startswith("_")}
    return ImageCache(
        cache_folder(),
        cached,
        installed,
        scheduler=type(pipe.scheduler).__name__,
        schedule=schedule,
        num_inference_steps=sampler.num_inference_steps,
        eta=sampler.eta,
        negative_prompt=sampler.negative_prompt,
        precision=sampler.precision,
        batch_size=batch_size,
    )


def group_calls(
    shots: Sequence[SamplingRequest], numbers: list[int], batch_size: int
) -> Iterator[list[int]]:
    """Yield the numbers of the requests in each call of the pipeline.

    The requests of one call have equal guidance and size. A request of several images is a call of
    its own.
    """
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
    requests: list[SamplingRequest],
    batch_size: int,
    sampler: Sampler,
) -> list[Tensor]:
    """Call the pipeline once, and return each request's images, uint8 (images, 3, H, W).

    The requests are one request of several images, or several requests of one image. A call of
    requests of one image is padded to `batch_size`.
    """
    first = requests[0]
    height, width = first.size or (None, None)
    generator: Any
    if first.images > 1:
        prompts = [first.prompt]
        generator = torch.Generator().manual_seed(first.seed)
    else:
        # the batch size changes the rounding of results, so every call has the same one
        padding = batch_size - len(requests)
        prompts = [*(request.prompt for request in requests), *[""] * padding]
        seeds = [*(request.seed for request in requests), *[0] * padding]
        generator = [torch.Generator().manual_seed(seed) for seed in seeds]
    output = pipe(
        prompts,
        height=height,
        width=width,
        negative_prompt=[sampler.negative_prompt] * len(prompts)
        if sampler.negative_prompt
        else None,
        num_images_per_prompt=first.images,
        generator=generator,
        num_inference_steps=sampler.num_inference_steps,
        guidance_scale=first.guidance_scale,
        output_type="pt",
        **({"eta": sampler.eta} if sampler.eta else {}),  # not every pipeline knows it
    ).images
    drawn = (output.float().clamp(0, 1) * 255).round().byte().cpu()
    return list(drawn.split(first.images)[: len(requests)])
