"""Anchor images as latents, prompt pairs as text states, and batches seeded by step and sample."""

from __future__ import annotations

from typing import NamedTuple

import lightning as L
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from unlearn.concepts import Concept, training_pairs
from unlearn.diffusion import draw_noise, sample_generator
from unlearn.generate import generate


class AnchorData(NamedTuple):
    """Everything that training needs of the VAE and the text encoder, computed once.

    Attributes:
        mean: posterior means of the anchor images (N, C, h, w).
        std: posterior standard deviations, same shape.
        pair: the prompt pair that each image was made from (N,).
        anchor_states: text states of the anchor prompts (P, T, D).
        target_states: text states of the target prompts (P, T, D).
    """

    mean: Tensor
    std: Tensor
    pair: Tensor
    anchor_states: Tensor
    target_states: Tensor


@torch.inference_mode()
def encode_prompts(pipe: StableDiffusionPipeline, prompts: list[str]) -> Tensor:
    """`encoder_hidden_states` (P, T, D) of prompts; refuses those over the token limit.

    Raises:
        ValueError: a prompt is longer than the tokenizer's limit.
    """
    limit = pipe.tokenizer.model_max_length
    for prompt in prompts:
        if (length := len(pipe.tokenizer(prompt).input_ids)) > limit:
            raise ValueError(f"prompt {prompt!r} has {length} tokens; the limit is {limit}")
    tokens = pipe.tokenizer(prompts, padding="max_length", return_tensors="pt")
    return pipe.text_encoder(tokens.input_ids.to(pipe.device))[0].clone()


@torch.inference_mode()
def make_anchor_data(
    pipe: StableDiffusionPipeline, concept: Concept, images: int, seed: int, steps: int
) -> AnchorData:
    """Draw anchor images with the base model and encode them, with all prompts, once.

    Args:
        pipe: the base pipeline.
        concept: gives the prompt pairs.
        images: number of anchor images.
        seed: image i is drawn from `seed * images + i`.
        steps: sampling steps.
    """
    pairs = training_pairs(concept)
    pair = torch.arange(images) % len(pairs)
    prompts = [pairs[i][0] for i in pair.tolist()]
    seeds = [seed * images + i for i in range(images)]
    drawn = generate(pipe, prompts, seeds, steps=steps, description="anchor images")
    moments = []
    for chunk in drawn.split(64):
        posterior = pipe.vae.encode((chunk.float() / 127.5 - 1).to(pipe.device)).latent_dist
        moments.append(torch.stack([posterior.mean, posterior.std]).cpu())
    mean, std = torch.cat(moments, dim=1) * pipe.vae.config.scaling_factor
    return AnchorData(
        mean.clone(),
        std.clone(),
        pair,
        encode_prompts(pipe, [a for a, _ in pairs]).cpu(),
        encode_prompts(pipe, [t for _, t in pairs]).cpu(),
    )


class PairDataset(Dataset[dict[str, Tensor]]):
    """Sample `step * global_batch + i` of the whole run: an unlearn half and a relearn half.

    Images, noise and timesteps depend on (seed, step, i) alone, never on the rank. The relearn
    image is never the unlearn image.
    """

    def __init__(
        self, data: AnchorData, steps: int, global_batch: int, seed: int, num_timesteps: int
    ) -> None:
        if len(data.pair) < 2:
            raise ValueError(f"data.images={len(data.pair)}: at least 2 are needed")
        self.data, self.steps, self.global_batch = data, steps, global_batch
        self.seed, self.num_timesteps = seed, num_timesteps

    def __len__(self) -> int:
        return self.steps * self.global_batch

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        step, i = divmod(number, self.global_batch)
        count = len(self.data.pair)
        rows = torch.randperm(count, generator=sample_generator(self.seed, step, -1 - i))[:2]
        shape = self.data.mean.shape[1:]
        draw = draw_noise(self.seed, step, [2 * i, 2 * i + 1], shape, self.num_timesteps)
        latents = self.data.mean[rows] + self.data.std[rows] * draw.posterior_noise
        pair = self.data.pair[rows]
        states = torch.stack([self.data.target_states[pair[0]], self.data.anchor_states[pair[1]]])
        return {
            "latents": latents,  # (2, C, h, w): unlearn half, relearn half
            "noise": draw.noise,
            "timesteps": draw.timesteps,
            "states": states,  # target prompt, anchor prompt
            "teacher_states": self.data.anchor_states[pair[0]],
        }


class PairDataModule(L.LightningDataModule):
    """One epoch is the whole run: `steps` global batches, split over the ranks in order."""

    def __init__(
        self, data: AnchorData, steps: int, batch_size: int, seed: int, num_timesteps: int
    ) -> None:
        super().__init__()
        self.data, self.steps, self.batch_size = data, steps, batch_size
        self.seed, self.num_timesteps = seed, num_timesteps

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Batches of `batch_size` a rank."""
        world = self.trainer.world_size if self.trainer else 1
        dataset = PairDataset(
            self.data, self.steps, self.batch_size * world, self.seed, self.num_timesteps
        )
        rank = self.trainer.global_rank if self.trainer else 0
        sampler: DistributedSampler[dict[str, Tensor]] = DistributedSampler(
            dataset, num_replicas=world, rank=rank, shuffle=False
        )
        return DataLoader(dataset, batch_size=self.batch_size, sampler=sampler)
