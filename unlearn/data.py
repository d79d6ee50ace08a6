"""Base-model images as latents, prompts as text states, and batches seeded by step and sample."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any, NamedTuple

import lightning as L
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline
from torch import Tensor
from torch.utils.data import Dataset
from transformers import CLIPTokenizer

from unlearn.batches import Batches
from unlearn.concepts import Concept
from unlearn.conditions import encode
from unlearn.diffusion import draw_noise, sample_generator
from unlearn.generate import default_batch, generate
from unlearn.prompts import relearn_prompts, shares, training_pairs


class ImageSet(NamedTuple):
    """Images drawn by the base model, encoded once, and the text states of their prompts.

    Texts are as in `conditions`.

    Attributes:
        mean: posterior means (N, C, h, w).
        std: posterior standard deviations, same shape.
        prompt: the prompt that each image was drawn from (N,).
        states: text states of the prompts (P, T, D).
        phrase: what was done to each image (N,): 0 nothing, i the i-th of `RESCALED`.
    """

    mean: Tensor
    std: Tensor
    prompt: Tensor
    states: Tensor
    phrase: Tensor


class TrainingData(NamedTuple):
    """Everything that training needs of the VAE and the text encoder.

    Attributes:
        anchor: images of the anchor concept.
        target_states: text states of the target prompts (1 or 5, P, T, D): plain, then with each
            phrase of `RESCALED`; one for each anchor prompt.
        relearn: images of what must survive; None: the anchor's.
    """

    anchor: ImageSet
    target_states: Tensor
    relearn: ImageSet | None = None


RESCALED = ("far away", "very small", "zoomed in", "close up")
FAR, NEAR = (0.4, 0.6), (1.2, 1.4)  # scales of the first two, and of the last two


def with_phrases(prompts: list[str]) -> list[list[str]]:
    """The prompts as they are, and with each phrase of `RESCALED` added."""
    return [prompts, *([f"{p}, {phrase}" for p in prompts] for phrase in RESCALED)]


def rescaled(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Each image smaller on grey, or cropped and larger, and its phrase's number from 1.

    Args:
        images: uint8 (N, 3, H, W).
        generator: draws the scales and the phrases.

    Source: the augmentation of DoCo's reference implementation, after Custom Diffusion (Kumari et
    al. 2023, section 3.2).
    """
    size = images.shape[-1]
    phrases = torch.randint(1, len(RESCALED) + 1, (len(images),), generator=generator)
    output = torch.full_like(images, 128)
    for i, phrase in enumerate(phrases.tolist()):
        low, high = FAR if phrase <= 2 else NEAR
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


def check_known(tokenizer: CLIPTokenizer, prompts: Iterable[str]) -> None:
    """Refuse prompts with words that the model cannot read.

    Raises:
        ValueError: the tokenizer knows none of a word's pieces, or takes it for a mark of its own.
    """
    marks = {*tokenizer.all_special_ids}
    for prompt in prompts:
        if marks & {*tokenizer(prompt, verbose=False).input_ids[1:-1]}:
            words = [w for w in prompt.split() if marks & {*tokenizer(w).input_ids[1:-1]}]
            raise ValueError(f"prompt {prompt!r}: the tokenizer does not know {words}")


def check_lengths(tokenizer: CLIPTokenizer, prompts: Iterable[str]) -> None:
    """Refuse prompts over the token limit.

    Raises:
        ValueError: a prompt is too long; says which of its words would be cut.
    """
    limit = tokenizer.model_max_length
    for prompt in prompts:
        ids = tokenizer(prompt, verbose=False).input_ids
        if len(ids) > limit:
            cut = tokenizer.decode(ids[limit - 1 : -1])
            raise ValueError(
                f"prompt {prompt!r} has {len(ids)} tokens; the limit is {limit}, so {cut!r} "
                "would be cut"
            )


@torch.no_grad()
def encode_prompts(pipe: DiffusionPipeline, prompts: list[str], cut: bool = False) -> Tensor:
    """Texts (P, T, D) of prompts, see `conditions`; over the token limit they are refused, or cut.

    Raises:
        ValueError: a prompt is longer than the tokenizer's limit, and `cut` is false.
    """
    if not cut:
        check_lengths(pipe.tokenizer, prompts)
        return encode(pipe, prompts)
    disabled = logging.root.manager.disable
    logging.disable(max(disabled, logging.WARNING))  # no line for each batch with a prompt cut
    try:
        return encode(pipe, prompts)
    finally:
        logging.disable(disabled)


@torch.inference_mode()
def draw_images(
    pipe: DiffusionPipeline,
    prompts: list[str],
    order: list[int],
    seeds: range,
    description: str,
    flip: bool,
    rescale: bool,
    **sampler: Any,
) -> ImageSet:
    """One base-model image a seed, of the prompts in the order, as posterior moments.

    With `flip` each image comes mirrored too, with `rescale` once more at another scale.
    """
    states = encode_prompts(pipe, prompts).cpu()
    prompt = torch.tensor(order)
    texts = [prompts[i] for i in order]
    images = generate(pipe, texts, seeds, description=description, **sampler)
    phrase = torch.zeros(len(images), dtype=torch.long)
    if rescale:
        scaled, phrases = rescaled(images, torch.Generator().manual_seed(seeds.start))
        images, phrase = torch.cat([images, scaled]), torch.cat([phrase, phrases])
    if flip:
        images, phrase = torch.cat([images, images.flip(-1)]), phrase.repeat(2)
    moments = []
    for chunk in images.split(sampler.get("batch_size") or default_batch(pipe)):
        posterior = pipe.vae.encode((chunk.float() / 127.5 - 1).to(pipe.device)).latent_dist
        moments.append(torch.stack([posterior.mean, posterior.std]).cpu())
    mean, std = torch.cat(moments, dim=1)
    scale, shift = pipe.vae.config.scaling_factor, pipe.vae.config.shift_factor or 0.0
    mean, std = (mean - shift) * scale, std * scale
    prompt = prompt.repeat(len(images) // len(prompt))
    return ImageSet(mean, std, prompt, states, phrase)


def make_training_data(
    pipe: DiffusionPipeline,
    concept: Concept,
    *,
    seed: int,
    images: int,
    relearn_images: int,
    flip: bool,
    rescale: bool,
    images_of: str = "anchor",
    **sampler: Any,
) -> TrainingData:
    """Draw the anchor images and the relearn images with the base model.

    Args:
        pipe: the base pipeline.
        concept: gives the prompts.
        seed: the run's seed; runs of other seeds, with as many images in all, share no image seed.
        images: number of anchor images.
        relearn_images: number of images of what must survive; 0: relearn on anchor images, as
            the paper does.
        flip: also train on each image mirrored.
        rescale: also train on each anchor image at another scale, with a phrase that says so added
            to the target prompt alone; not for a style.
        images_of: "anchor" or "target": the prompts that the unlearn half's images are drawn from;
            either way they are trained on under the target prompts, beside the anchor prompts.
        sampler: how the images are drawn: arguments of `generate`.

    Raises:
        ValueError: a prompt is too long.
    """
    anchors, targets = map(list, zip(*training_pairs(concept), strict=True))
    total = images + relearn_images
    seeds = range(seed * total, (seed + 1) * total)
    rescale = rescale and all(part.kind != "style" for part in concept.each)
    phrased = with_phrases(targets) if rescale else [targets]
    target_states = torch.stack([encode_prompts(pipe, texts).cpu() for texts in phrased])
    sampler["flip"] = flip
    drawn, label = (targets if images_of == "target" else anchors), f"{images_of} images"
    order = shares(concept, training_pairs, images)
    anchor = draw_images(pipe, drawn, order, seeds[:images], label, rescale=rescale, **sampler)
    if images_of == "target":
        anchor = anchor._replace(states=encode_prompts(pipe, anchors).cpu())
    if not relearn_images:
        return TrainingData(anchor, target_states)
    prompts = relearn_prompts(concept)
    order = shares(concept, relearn_prompts, relearn_images)
    relearn = draw_images(
        pipe, prompts, order, seeds[images:], "relearn images", rescale=False, **sampler
    )
    return TrainingData(anchor, target_states, relearn)


class PairDataset(Dataset[dict[str, Tensor]]):
    """Sample `step * global_batch + i` of the whole run: an unlearn half and a relearn half.

    Images, noise and timesteps depend on (seed, step, i) alone, never on the rank. Where both
    halves are anchor images, they are never the same one.
    """

    def __init__(
        self, data: TrainingData, steps: int, global_batch: int, seed: int, num_timesteps: int
    ) -> None:
        self.data, self.steps, self.global_batch = data, steps, global_batch
        self.seed, self.num_timesteps = seed, num_timesteps

    def __len__(self) -> int:
        return self.steps * self.global_batch

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        step, i = divmod(number, self.global_batch)
        anchor, relearn = self.data.anchor, self.data.relearn
        generator = sample_generator(self.seed, step, -1 - i)
        first, second = torch.randperm(len(anchor.prompt), generator=generator)[:2].tolist()
        if relearn is None:
            relearn = anchor
        else:
            second = int(torch.randint(len(relearn.prompt), (), generator=generator))
        shape = anchor.mean.shape[1:]
        draw = draw_noise(self.seed, step, [2 * i, 2 * i + 1], shape, self.num_timesteps)
        mean = torch.stack([anchor.mean[first], relearn.mean[second]])
        std = torch.stack([anchor.std[first], relearn.std[second]])
        pair, phrase = anchor.prompt[first], anchor.phrase[first]
        kept = relearn.states[relearn.prompt[second]]
        return {
            "latents": mean + std * draw.posterior_noise,  # (2, C, h, w): unlearn, relearn half
            "noise": draw.noise,
            "timesteps": draw.timesteps,
            "states": torch.stack([self.data.target_states[phrase, pair], kept]),
            "teacher_states": anchor.states[pair],
            "pair": pair,
            "seed": torch.randint(2**62, (), generator=generator),  # of what else a method draws
        }


class PairDataModule(L.LightningDataModule):
    """One epoch is the whole run: `steps` global batches, split over the ranks in order."""

    def __init__(
        self,
        data: TrainingData,
        steps: int,
        batch_size: int,
        seed: int,
        num_timesteps: int,
        accumulate: int = 1,
    ) -> None:
        super().__init__()
        self.data, self.steps, self.batch_size = data, steps, batch_size
        self.seed, self.num_timesteps, self.accumulate = seed, num_timesteps, accumulate

    def train_dataloader(self) -> Iterable[dict[str, Tensor]]:
        """Batches of `batch_size` a rank, `accumulate` of them a step, as the method wants them."""
        world = self.trainer.world_size if self.trainer else 1
        size = self.batch_size * world * self.accumulate
        dataset = PairDataset(self.data, self.steps, size, self.seed, self.num_timesteps)
        rank = self.trainer.global_rank if self.trainer else 0
        loader = Batches(dataset, self.batch_size, rank, world)
        method: Any = self.trainer.lightning_module if self.trainer else None
        return method.feed(loader) if method else loader
