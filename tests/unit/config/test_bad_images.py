"""Bad pictures: of a folder of reference images, refused; of the cache, named and drawn again."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.helpers.bad_cases.images import CASES, DAMAGED, encoded
from tests.helpers.bad_input import Case, name_of
from unlearn.generation.image_cache import pipeline_fingerprint
from unlearn.generation.sampling import Sampler, generate
from unlearn.models.pipeline import load_pipeline
from unlearn.utils.images import read_image


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_a_bad_reference_picture_is_refused(case: Case, refused: Callable[[Case], None]) -> None:
    refused(case)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1", "I;16", "RGB"])
def test_pictures_of_any_mode_are_read(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "x.png"
    Image.new(mode, (5, 3)).save(path)
    assert read_image(path).shape == (3, 3, 5)


def folder(path: Path) -> None:
    """A folder in the place of a cached image, which no image can take."""
    path.unlink()
    path.mkdir()


def linked_elsewhere(path: Path) -> None:
    """A link to a file that is not the cache's."""
    (path.parents[3] / "kept.txt").write_text("kept")
    path.unlink()
    path.symlink_to(path.parents[3] / "kept.txt")


CACHED: dict[str, Callable[[Path], Any]] = {
    **{name: lambda path, data=data: path.write_bytes(data) for name, (data, _) in DAMAGED.items()},
    "another size": lambda path: path.write_bytes(encoded("PNG", (32, 32))),
    "a folder": folder,
    "a link": linked_elsewhere,
}


@pytest.mark.parametrize("damage", CACHED)
def test_a_bad_cached_image_is_named_and_drawn_again(
    damage: str, random_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNLEARN_CACHE", str(tmp_path / "cache"))
    pipe = load_pipeline(str(random_model))
    sampler = Sampler(num_inference_steps=1, guidance_scale=6.0, batch_size=1)
    cached = pipeline_fingerprint(pipe)
    first = generate(pipe, ["a panda"], [1], sampler, cached=cached)
    (file,) = (tmp_path / "cache").rglob("*.png")
    good = file.read_bytes()
    CACHED[damage](file)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", UserWarning)
        assert torch.equal(generate(pipe, ["a panda"], [1], sampler, cached=cached), first)
    assert f"{file}: damaged (" in str(said[0].message)
    if damage == "a folder":
        assert "images are not kept" in str(said[1].message)
    else:
        assert file.read_bytes() == good
        assert not os.path.islink(file)
    if damage == "a link":
        assert (tmp_path / "kept.txt").read_text() == "kept"
