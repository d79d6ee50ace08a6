"""Seeded, batched image generation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
from torch import Tensor
from tqdm import tqdm

from unlearn.cache import ImageCache, cache_folder


def generate(
    pipe: StableDiffusionPipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int,
    guidance: float,
    precision: str = "32-true",
    batch_size: int = 32,
    description: str = "generating",
    cached: bool = False,
) -> Tensor:
    """Images of the prompts, uint8 (N, 3, H, W).

    Each image has one CPU generator of its own, and batches are padded to one size, so an image
    depends on its prompt and seed alone. Sampler: DPM-Solver++.

    Args:
        pipe: the pipeline; its scheduler is replaced.
        prompts: N prompts.
        seeds: N seeds, one an image.
        steps: sampling steps.
        guidance: scale of classifier-free guidance.
        precision: "32-true" or "bf16-mixed", which autocasts the networks.
        batch_size: images a call.
        description: of the progress bar.
        cached: keep the images in the cache, and draw only those that it lacks.
    """
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    sampler = {"steps": steps, "guidance": guidance, "precision": precision}
    cache = ImageCache(cache_folder(), pipe, batch_size=batch_size, **sampler) if cached else None
    mixed = torch.autocast(pipe.device.type, torch.bfloat16, enabled=precision == "bf16-mixed")
    images: list[Tensor | None] = [None] * len(prompts)
    if cache:
        images = [cache.get(p, s) for p, s in zip(prompts, seeds, strict=True)]
    missing = [i for i, image in enumerate(images) if image is None]
    found = len(prompts) - len(missing)
    with tqdm(total=len(prompts), initial=found, desc=description, unit="image") as progress:
        for start in range(0, len(missing), batch_size):
            chunk = missing[start : start + batch_size]
            padding = batch_size - len(chunk)
            numbers = [*(seeds[i] for i in chunk), *[0] * padding]
            with mixed:
                output = pipe(
                    [*(prompts[i] for i in chunk), *[""] * padding],
                    generator=[torch.Generator().manual_seed(n) for n in numbers],
                    num_inference_steps=steps,
                    guidance_scale=guidance,
                    output_type="pt",
                ).images[: len(chunk)]
            drawn = (output.float().clamp(0, 1) * 255).round().byte().cpu()
            for i, image in zip(chunk, drawn, strict=True):
                images[i] = image
                if cache:
                    cache.put(prompts[i], seeds[i], image)
            progress.update(len(chunk))
    return torch.stack(images)  # type: ignore[arg-type]
