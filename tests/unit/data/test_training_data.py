"""Batches: fixed by (seed, step, sample) alone, however they are split over ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers.utils import logging as diffusers_logging
from torch import Tensor

from tests.conftest import make_concept
from unlearn.data.datamodule import PairDataset
from unlearn.data.training_data import (
    SCALE_PHRASES,
    DataOptions,
    ImageSet,
    TrainingData,
    make_training_data,
    rescale_images,
)
from unlearn.generation.sampling import Sampler
from unlearn.models.pipeline import load_pipeline
from unlearn.models.text_states import encode_prompts, encode_text

SAMPLER = Sampler(num_inference_steps=1, guidance_scale=6.0)


def options(images: int, relearn_images: int, augmented: bool = False) -> DataOptions:
    return DataOptions(
        images=images, relearn_images=relearn_images, num_inference_steps=1,
        flip=augmented, rescale=augmented,
    )  # fmt: skip


def make_images(images: int, first: float, seed: int = 0) -> ImageSet:
    g = torch.Generator().manual_seed(seed)
    shape = (images, 4, 4, 4)
    states = torch.tensor([first, first + 1])[:, None, None]
    return ImageSet(
        torch.randn(shape, generator=g),
        torch.full(shape, 0.5),
        torch.arange(images) % 2,
        states,
        torch.zeros(images, dtype=torch.long),
    )


def make_data(images: int = 5) -> TrainingData:
    return TrainingData(make_images(images, 10.0), torch.tensor([[20.0, 21.0]])[..., None, None])


def test_a_sample_depends_on_its_step_and_place_alone() -> None:
    long = PairDataset(make_data(), 4, 3, seed=7, num_timesteps=1000)
    short = PairDataset(make_data(), 2, 3, seed=7, num_timesteps=1000)
    for number in range(len(short)):
        for key, value in short[number].items():
            assert torch.equal(value, long[number][key])
    other = PairDataset(make_data(), 2, 3, seed=8, num_timesteps=1000)
    assert not torch.equal(short[0]["noise"], other[0]["noise"])


def nearest(images: ImageSet, latent: Tensor) -> int:
    """The image whose posterior a latent was drawn from."""
    return int((latent - images.mean).flatten(1).norm(dim=-1).argmin())


def test_the_halves_are_different_images_with_the_right_prompts() -> None:
    data = make_data()
    dataset = PairDataset(data, 6, 4, seed=0, num_timesteps=1000)
    timesteps, noises = [], []
    for number in range(len(dataset)):
        sample = dataset[number]
        rows = [nearest(data.anchor, latent) for latent in sample["latents"]]
        assert rows[0] != rows[1]
        assert sample["states"][0].item() == 20 + data.anchor.prompt[rows[0]].item()
        assert sample["states"][1].item() == 10 + data.anchor.prompt[rows[1]].item()
        assert sample["teacher_states"].item() == 10 + data.anchor.prompt[rows[0]].item()
        timesteps += sample["timesteps"].tolist()
        noises += list(sample["noise"])
    assert len({n.sum().item() for n in noises}) == len(noises)
    assert min(timesteps) < 200 < 800 < max(timesteps) < 1000


def test_the_relearn_half_comes_from_the_relearn_images() -> None:
    data = make_data()._replace(relearn=make_images(7, 30.0, seed=1))
    dataset = PairDataset(data, 32, 4, seed=0, num_timesteps=1000)
    used = set()
    for number in range(len(dataset)):
        sample = dataset[number]
        row = nearest(data.relearn, sample["latents"][1])
        assert sample["states"][1].item() == 30 + data.relearn.prompt[row].item()
        used.add(row)
    assert used == set(range(7))


def test_data_is_drawn_from_the_concept_s_prompts(random_model: Path) -> None:
    pipe = load_pipeline(str(random_model))
    concept = make_concept("panda", "bear", related=["koala"], unrelated=["pizza"])
    data = make_training_data(pipe, concept, options(3, 2), SAMPLER, seed=0)
    assert len(data.anchor.mean) == 3
    assert len(data.relearn.mean) == 2
    assert data.target_states.shape[:2] == (1, len(data.anchor.states))
    expected = pipe.encode_prompt(["a bear", "a panda"], "cpu", 1, False)[0]
    torch.testing.assert_close(data.anchor.states[1], expected[0])
    torch.testing.assert_close(data.target_states[0, 1], expected[1])
    other = make_training_data(pipe, concept, options(3, 2), SAMPLER, seed=1)
    assert not torch.equal(data.anchor.mean[0], other.anchor.mean[0])


def test_a_prompt_over_the_limit_is_refused_or_cut_without_a_word(
    random_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pipe = load_pipeline(random_model)
    long = "a panda and a fox " * pipe.tokenizer.model_max_length
    with pytest.raises(ValueError, match="would be cut"):
        encode_prompts(pipe, [long])
    verbosity = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_warning()
    diffusers_logging.add_handler(caplog.handler)
    try:
        cut, longer = (encode_prompts(pipe, [text], cut=True) for text in (long, long * 2))
        assert torch.equal(cut, longer)
        assert not caplog.text
        assert torch.equal(cut, encode_text(pipe, [long])) and "truncated" in caplog.text
    finally:
        diffusers_logging.remove_handler(caplog.handler)
        diffusers_logging.set_verbosity(verbosity)


def test_augmentations_add_mirrored_and_rescaled_images(random_model: Path) -> None:
    pipe = load_pipeline(str(random_model))
    concept = make_concept("panda", "bear", related=["koala"], unrelated=["pizza"])
    data = make_training_data(pipe, concept, options(3, 2, augmented=True), SAMPLER, seed=0)
    assert len(data.anchor.mean) == 12
    assert data.anchor.prompt.tolist() == [0, 1, 2] * 4
    assert data.anchor.phrase[:3].tolist() == data.anchor.phrase[6:9].tolist() == [0, 0, 0]
    assert data.anchor.phrase[3:6].min() >= 1
    assert len(data.relearn.mean) == 4  # mirrored alone
    assert not data.relearn.phrase.any()
    text = f"panda, {SCALE_PHRASES[2]}"
    expected = pipe.encode_prompt([text], "cpu", 1, False)[0][0]
    torch.testing.assert_close(data.target_states[3, 0], expected)
    sample = PairDataset(data, 1, 1, seed=0, num_timesteps=1000)
    for number in range(len(sample)):
        assert sample[number]["states"].shape == (2, 32, 32)
    style = make_concept("noto", "flat", "style")
    data = make_training_data(pipe, style, options(3, 0, augmented=True), SAMPLER, seed=0)
    assert len(data.anchor.mean) == 6
    assert len(data.target_states) == 1


def test_rescaled_images_are_smaller_on_grey_or_cropped() -> None:
    images = torch.zeros(40, 3, 64, 64, dtype=torch.uint8)
    images[:, :, 24:40, 24:40] = 255
    output, phrases = rescale_images(images, torch.Generator().manual_seed(0))
    assert set(phrases.tolist()) == {1, 2, 3, 4}
    for image, phrase in zip(output, phrases.tolist(), strict=True):
        area = (image[0] > 200).sum().item()
        far = phrase <= 2
        assert (image[0, 0, 0] == 128) == far
        low, high = (0.4, 0.6) if far else (1.2, 1.4)
        assert (16 * low - 2) ** 2 < area < (16 * high + 2) ** 2
