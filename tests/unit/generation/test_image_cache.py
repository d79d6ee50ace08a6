"""The image cache: exact, keyed by all that decides an image, and safe against broken files."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMParallelScheduler

from unlearn.generation.image_cache import ImageCache, cache_folder, pipeline_fingerprint
from unlearn.generation.sampling import Sampler, SamplingRequest, draw_requests, generate
from unlearn.methods.negative_prompt import NegativePrompt
from unlearn.methods.sld import SLD
from unlearn.methods.spm import SPM, permeable
from unlearn.models.pipeline import load_pipeline

PROMPTS = ["a panda", "a fox", "a bear"]
SAMPLER = Sampler(num_inference_steps=2, guidance_scale=6.0, batch_size=2)
ONE = Sampler(num_inference_steps=1, guidance_scale=6.0, batch_size=1)
HOW = {"num_inference_steps": 2, "guidance_scale": 6.0, "batch_size": 2}  # all of an `ImageCache`


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("UNLEARN_CACHE", str(tmp_path))
    return tmp_path / "images"


def files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file())


def test_cached_images_are_those_drawn(random_model: Path, folder: Path) -> None:
    pipe = load_pipeline(str(random_model))
    plain = generate(pipe, PROMPTS, [1, 2, 3], SAMPLER)
    assert not files(folder.parent)
    first = generate(pipe, PROMPTS, [1, 2, 3], SAMPLER, cached=pipeline_fingerprint(pipe))
    assert len(files(folder)) == 3
    times = [f.stat().st_mtime_ns for f in files(folder)]
    again = generate(pipe, PROMPTS, [1, 2, 3], SAMPLER, cached=pipeline_fingerprint(pipe))
    assert torch.equal(first, plain)
    assert torch.equal(first, again)
    assert [f.stat().st_mtime_ns for f in files(folder)] == times


def test_only_what_is_missing_is_drawn(random_model: Path, folder: Path) -> None:
    pipe = load_pipeline(str(random_model))
    plain = generate(pipe, PROMPTS, [1, 2, 3], SAMPLER)
    generate(pipe, PROMPTS[:1], [1], SAMPLER, cached=pipeline_fingerprint(pipe))
    calls = []
    pipe.unet.register_forward_hook(lambda *_: calls.append(1))
    images = generate(pipe, PROMPTS, [1, 2, 3], SAMPLER, cached=pipeline_fingerprint(pipe))
    assert torch.equal(images, plain)
    assert len(calls) == 2  # one batch of two steps


def flipped(data: bytes) -> bytes:
    """One bit changed in the middle of the compressed pixels."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.mark.parametrize(
    "damage", [lambda _: b"", lambda _: b"not a picture", lambda d: d[: len(d) // 2], flipped]
)
def test_a_broken_file_is_named_and_drawn_again(
    random_model: Path, folder: Path, damage: Callable[[bytes], bytes]
) -> None:
    pipe = load_pipeline(str(random_model))
    first = generate(pipe, PROMPTS[:1], [1], SAMPLER, cached=pipeline_fingerprint(pipe))
    (file,) = files(folder)
    good = file.read_bytes()
    file.write_bytes(damage(good))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", UserWarning)
        again = generate(pipe, PROMPTS[:1], [1], SAMPLER, cached=pipeline_fingerprint(pipe))
    assert torch.equal(again, first)
    assert [str(w.message).startswith(f"{file}: damaged") for w in said] == [True]
    assert file.read_bytes() == good


def test_images_are_drawn_where_none_can_be_kept(
    random_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNLEARN_CACHE", "/dev/full/cache")
    pipe = load_pipeline(str(random_model))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default", UserWarning)
        images = generate(pipe, PROMPTS[:1], [1], SAMPLER, cached=pipeline_fingerprint(pipe))
    assert [str(w.message) for w in said] == [
        "/dev/full/cache/images: images are not kept (Not a directory)"
    ]
    assert torch.equal(images, generate(pipe, PROMPTS[:1], [1], SAMPLER))


def test_the_key_holds_weights_sampler_prompt_and_seed(random_model: Path) -> None:
    pipe = load_pipeline(str(random_model))
    cache = ImageCache(cache_folder(), pipeline_fingerprint(pipe), **HOW)
    names = {cache.path("a", 1), cache.path("a", 2), cache.path("b", 1)}
    longer = {**HOW, "num_inference_steps": 3}
    names.add(ImageCache(cache_folder(), pipeline_fingerprint(pipe), **longer).path("a", 1))
    before = pipeline_fingerprint(pipe)
    assert pipeline_fingerprint(load_pipeline(str(random_model))) == before
    next(iter(pipe.unet.parameters())).data[0] += 1e-3
    assert pipeline_fingerprint(pipe) != before
    names.add(ImageCache(cache_folder(), pipeline_fingerprint(pipe), **HOW).path("a", 1))
    assert len(names) == 5


def test_the_key_holds_what_networks_and_tokenizers_are_set_to(random_model: Path) -> None:
    def load() -> Any:
        return load_pipeline(str(random_model))

    pipe = load()
    before = pipeline_fingerprint(pipe)
    pipe(["a panda " * 40], num_inference_steps=1, output_type="latent")  # pads and cuts
    assert pipeline_fingerprint(pipe) == before
    keys = [before]
    pipe = load()
    pipe.vae.register_to_config(scaling_factor=2 * pipe.vae.config.scaling_factor)
    keys.append(pipeline_fingerprint(pipe))
    pipe = load()
    pipe.text_encoder.config.hidden_act = "gelu"
    keys.append(pipeline_fingerprint(pipe))
    pipe = load()
    pipe.tokenizer.model_max_length = 8
    keys.append(pipeline_fingerprint(pipe))
    assert len({*keys}) == 4


def test_the_key_holds_the_scheduler(random_model: Path, folder: Path) -> None:
    pipe = load_pipeline(str(random_model))
    schedulers = [DDPMParallelScheduler, DDIMScheduler]
    for number, (kind, end) in enumerate(product(schedulers, (0.1, 0.2)), 1):
        pipe.scheduler = kind.from_config(pipe.scheduler.config, beta_end=end)
        cached = pipeline_fingerprint(pipe)
        shots = [SamplingRequest("a panda", 1, 6.0)]
        dict(draw_requests(pipe, shots, replace(ONE, scheduler="own"), cached=cached))
        assert len(files(folder)) == number


def test_the_key_holds_all_that_a_shot_and_its_sampler_say(
    random_model: Path, folder: Path
) -> None:
    pipe = load_pipeline(str(random_model))
    shot = SamplingRequest("a panda", 1, 6.0)
    others = [
        shot._replace(guidance_scale=2.0),
        shot._replace(size=(32, 64)),
        shot._replace(images=2),
    ]
    count = 0
    ddim = replace(ONE, scheduler="ddim")
    for sampler in (ONE, ddim, replace(ddim, eta=1.0), replace(ddim, negative_prompt="an owl")):
        for each in (shot, *others):
            cached = pipeline_fingerprint(pipe)
            images = dict(draw_requests(pipe, [each], sampler, cached=cached))[0]
            count += each.images
            assert len(files(folder)) == count
            (((_, again)),) = draw_requests(pipe, [each], sampler, cached=cached)
            assert torch.equal(images, again)


def test_a_call_of_which_an_image_is_missing_is_drawn_again(
    random_model: Path, folder: Path
) -> None:
    pipe = load_pipeline(str(random_model))
    shots = [SamplingRequest("a panda", 1, 6.0, None, 3), SamplingRequest("a fox", 1, 6.0, None, 3)]
    first = dict(
        draw_requests(
            pipe, shots, replace(SAMPLER, batch_size=None), cached=pipeline_fingerprint(pipe)
        )
    )
    kept = {file: file.read_bytes() for file in files(folder)}
    files(folder)[0].unlink()
    steps = []
    pipe.unet.register_forward_hook(lambda *_: steps.append(1))
    again = dict(
        draw_requests(
            pipe, shots, replace(SAMPLER, batch_size=None), cached=pipeline_fingerprint(pipe)
        )
    )
    assert len(steps) == 2  # one of the two calls
    assert all(torch.equal(first[i], again[i]) for i in range(2))
    assert {file: file.read_bytes() for file in files(folder)} == kept


@pytest.mark.parametrize("method", [SLD, NegativePrompt, SPM])
def test_an_installed_method_must_be_named(random_model: Path, folder: Path, method: Any) -> None:
    pipe = load_pipeline(str(random_model))
    options = {"text": "panda", "targets": ["panda"], "scale": 1000.0, "warmup_steps": 0}
    options |= {"threshold": 0.01, "momentum_scale": 0.3, "momentum_decay": 0.4}
    weights = {}
    if method is SPM:
        for name, layer in permeable(pipe.unet).items():
            out, *rest = layer.weight.shape
            weights[f"{name}.down"] = torch.ones(1, *rest)
            weights[f"{name}.up"] = torch.ones(out, 1, *[1] * (len(rest) - 1))
    shots = [SamplingRequest("a panda", 1, 6.0)]
    sampler = replace(SAMPLER, batch_size=1)
    (((_, base)),) = draw_requests(pipe, shots, sampler, cached=pipeline_fingerprint(pipe))
    method.install(pipe, weights, options)
    with pytest.raises(AssertionError, match="would take it for its base model"):
        list(draw_requests(pipe, shots, sampler, cached=pipeline_fingerprint(pipe)))
    cached = pipeline_fingerprint(pipe)
    (((_, changed)),) = draw_requests(pipe, shots, sampler, cached=cached, installed="panda")
    assert not torch.equal(base, changed)
    list(draw_requests(pipe, shots, sampler, cached=cached, installed="other"))
    assert len(files(folder)) == 3
