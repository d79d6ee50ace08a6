"""Batches: fixed by (seed, step, sample) alone, however they are split over ranks."""

from __future__ import annotations

import pytest
import torch

from unlearn.data import AnchorData, PairDataset


def make_data(images: int = 5) -> AnchorData:
    g = torch.Generator().manual_seed(0)
    shape = (images, 4, 4, 4)
    return AnchorData(
        torch.randn(shape, generator=g),
        torch.full(shape, 0.5),
        torch.arange(images) % 2,
        torch.tensor([10.0, 11.0])[:, None, None],
        torch.tensor([20.0, 21.0])[:, None, None],
    )


def test_a_sample_depends_on_its_step_and_place_alone() -> None:
    long = PairDataset(make_data(), 4, 3, seed=7, num_timesteps=1000)
    short = PairDataset(make_data(), 2, 3, seed=7, num_timesteps=1000)
    for number in range(len(short)):
        for key, value in short[number].items():
            assert torch.equal(value, long[number][key])
    other = PairDataset(make_data(), 2, 3, seed=8, num_timesteps=1000)
    assert not torch.equal(short[0]["noise"], other[0]["noise"])


def test_the_halves_are_different_images_with_the_right_prompts() -> None:
    data = make_data()
    dataset = PairDataset(data, 6, 4, seed=0, num_timesteps=1000)
    timesteps, noises = [], []
    for number in range(len(dataset)):
        sample = dataset[number]
        # distance to each image's mean, in posterior standard deviations, finds the image
        rows = (sample["latents"][:, None] - data.mean).flatten(2).norm(dim=-1).argmin(1)
        assert rows[0] != rows[1]
        assert sample["states"][0].item() == 20 + data.pair[rows[0]].item()
        assert sample["states"][1].item() == 10 + data.pair[rows[1]].item()
        assert sample["teacher_states"].item() == 10 + data.pair[rows[0]].item()
        timesteps += sample["timesteps"].tolist()
        noises += list(sample["noise"])
    assert len({n.sum().item() for n in noises}) == len(noises)
    assert min(timesteps) < 200 < 800 < max(timesteps) < 1000


def test_one_anchor_image_is_too_few() -> None:
    with pytest.raises(ValueError, match=r"data\.images=1: at least 2"):
        PairDataset(make_data(1), 1, 1, 0, 1000)
