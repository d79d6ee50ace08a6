"""The image cache: exact, keyed by all that decides an image, and safe against broken files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from unlearn.backbone import load_pipeline
from unlearn.cache import ImageCache, cache_folder, fingerprint
from unlearn.generate import generate

PROMPTS = ["a panda", "a fox", "a bear"]
SAMPLER = {"steps": 2, "guidance": 6.0, "batch_size": 2}


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("UNLEARN_CACHE", str(tmp_path))
    return tmp_path / "images"


def files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file())


def test_cached_images_are_those_drawn(random_model: Path, folder: Path) -> None:
    pipe = load_pipeline(str(random_model))
    plain = generate(pipe, PROMPTS, [1, 2, 3], **SAMPLER)
    assert not files(folder.parent)
    first = generate(pipe, PROMPTS, [1, 2, 3], cached=True, **SAMPLER)
    assert len(files(folder)) == 3
    times = [f.stat().st_mtime_ns for f in files(folder)]
    again = generate(pipe, PROMPTS, [1, 2, 3], cached=True, **SAMPLER)
    assert torch.equal(first, plain)
    assert torch.equal(first, again)
    assert [f.stat().st_mtime_ns for f in files(folder)] == times


def test_only_what_is_missing_is_drawn(random_model: Path, folder: Path) -> None:
    pipe = load_pipeline(str(random_model))
    plain = generate(pipe, PROMPTS, [1, 2, 3], **SAMPLER)
    generate(pipe, PROMPTS[:1], [1], cached=True, **SAMPLER)
    calls = []
    pipe.unet.register_forward_hook(lambda *_: calls.append(1))
    images = generate(pipe, PROMPTS, [1, 2, 3], cached=True, **SAMPLER)
    assert torch.equal(images, plain)
    assert len(calls) == 2  # one batch of two steps


@pytest.mark.parametrize("damage", [b"", b"not a picture", None])
def test_a_broken_file_is_drawn_again(
    random_model: Path, folder: Path, damage: bytes | None
) -> None:
    pipe = load_pipeline(str(random_model))
    first = generate(pipe, PROMPTS[:1], [1], cached=True, **SAMPLER)
    (file,) = files(folder)
    good = file.read_bytes()
    file.write_bytes(good[: len(good) // 2] if damage is None else damage)
    assert torch.equal(generate(pipe, PROMPTS[:1], [1], cached=True, **SAMPLER), first)
    assert file.read_bytes() == good


def test_the_key_holds_weights_scheduler_sampler_prompt_and_seed(random_model: Path) -> None:
    pipe = load_pipeline(str(random_model))
    cache = ImageCache(cache_folder(), pipe, **SAMPLER)
    names = {cache.path("a", 1), cache.path("a", 2), cache.path("b", 1)}
    names.add(ImageCache(cache_folder(), pipe, **{**SAMPLER, "steps": 3}).path("a", 1))
    before = fingerprint(pipe)
    assert fingerprint(load_pipeline(str(random_model))) == before
    next(iter(pipe.unet.parameters())).data[0] += 1e-3
    assert fingerprint(pipe) != before
    names.add(ImageCache(cache_folder(), pipe, **SAMPLER).path("a", 1))
    assert len(names) == 5
    changed = load_pipeline(str(random_model))
    changed.scheduler = type(changed.scheduler).from_config(changed.scheduler.config, beta_end=0.1)
    assert fingerprint(changed) != before
