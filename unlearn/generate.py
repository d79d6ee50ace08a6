"""Seeded, batched image generation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
from torch import Tensor
from tqdm import tqdm


def generate(
    pipe: StableDiffusionPipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int,
    guidance: float,
    batch_size: int = 32,
    description: str = "generating",
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
        batch_size: images a call.
        description: of the progress bar.
    """
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    images = []
    with tqdm(total=len(prompts), desc=description, unit="image") as progress:
        for start in range(0, len(prompts), batch_size):
            texts, chunk = list(prompts[start : start + batch_size]), seeds[start:][:batch_size]
            missing = batch_size - len(texts)
            numbers = [*chunk, *[0] * missing]
            output = pipe(
                [*texts, *[""] * missing],
                generator=[torch.Generator().manual_seed(n) for n in numbers],
                num_inference_steps=steps,
                guidance_scale=guidance,
                output_type="pt",
            ).images[: len(texts)]
            images.append((output.float().clamp(0, 1) * 255).round().byte().cpu())
            progress.update(len(texts))
    return torch.cat(images)
