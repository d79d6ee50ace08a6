"""Bad pictures: of a folder of reference images, refused; of the cache, named and drawn again."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.helpers.bad_input import Case, files, name_of
from unlearn.generation.sampling import generate
from unlearn.models.pipeline import load_pipeline
from unlearn.utils.images import read_image


def encoded(kind: str, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> bytes:
    """A grey picture."""
    buffer = io.BytesIO()
    Image.new(mode, size, 100).save(buffer, kind)
    return buffer.getvalue()


def bomb() -> bytes:
    """A small file of a very large picture: a black one of a bit a pixel."""
    return encoded("PNG", (20000, 20000), "1")


def flipped(data: bytes) -> bytes:
    """One bit changed in the compressed pixels."""
    place = data.index(b"IDAT") + 6
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n"
DAMAGED = {  # a PNG's bytes, and what is said of them
    "empty": (b"", "cannot identify image file"),
    "text": (b"a picture of a panda", "cannot identify image file"),
    "PostScript": (POSTSCRIPT, "cannot identify image file"),
    "GIF": (encoded("GIF", mode="L"), "cannot identify image file"),
    "half": (encoded("PNG", (64, 64))[:60], "[Tt]runcated|broken|not enough"),
    "changed": (flipped(encoded("PNG", (64, 64))), "checksum|CRC"),
    "bomb": (bomb(), "too large: .*decompression bomb"),
}


def reference(write: Callable[[Path], Any], message: str) -> Case:
    """A protocol that measures FID to the pictures of a folder, `ref`."""
    given = ["evaluation=coco30k", "evaluation.sha256=null", "evaluation.prompts_file=own.csv"]
    given += ["evaluation.clip=emoji", "evaluation.reference=ref"]

    def prepare(work: Path) -> None:
        files(own_dot_csv="prompt\na dog\n")(work)
        write(work)

    return Case(["evaluate", "run", *given], message, prepare)


def among(data: bytes) -> Callable[[Path], None]:
    """A folder of two pictures, the second of these bytes."""
    return files(ref__a_dot_jpg=encoded("JPEG"), ref__b_dot_png=data)


def linked(work: Path) -> None:
    """A folder with a picture that is a link to nothing."""
    (work / "ref").mkdir()
    (work / "ref" / "b.png").symlink_to(work / "nowhere.png")


CASES = [
    reference(lambda work: None, r"evaluation\.reference='ref': there is no such folder"),
    reference(files(ref="x"), r"evaluation\.reference='ref': there is no such folder"),
    reference(lambda work: (work / "ref").mkdir(), r"='ref': holds no \('\.jpg', "),
    reference(files(ref__a_dot_txt="x"), r"='ref': holds no \('\.jpg', "),
    reference(
        lambda work: (work / "ref" / "x.png").mkdir(parents=True),
        r"ref/x\.png: not a whole picture: .*Is a directory",
    ),
    reference(linked, r"ref/b\.png: not a whole picture: .*No such file"),
    *(
        reference(among(data), rf"reference: ref/b\.png: not a whole picture: .*({why})")
        for data, why in DAMAGED.values()
    ),
]


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


def elsewhere(path: Path) -> None:
    """A link to a file that is not the cache's."""
    (path.parents[3] / "kept.txt").write_text("kept")
    path.unlink()
    path.symlink_to(path.parents[3] / "kept.txt")


CACHED: dict[str, Callable[[Path], Any]] = {
    **{name: lambda path, data=data: path.write_bytes(data) for name, (data, _) in DAMAGED.items()},
    "another size": lambda path: path.write_bytes(encoded("PNG", (32, 32))),
    "a folder": folder,
    "a link": elsewhere,
}


@pytest.mark.parametrize("damage", CACHED)
def test_a_bad_cached_image_is_named_and_drawn_again(
    damage: str, random_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNLEARN_CACHE", str(tmp_path / "cache"))
    pipe = load_pipeline(str(random_model))
    how: dict[str, Any] = {
        "num_inference_steps": 1,
        "guidance_scale": 6.0,
        "batch_size": 1,
        "cached": True,
    }
    first = generate(pipe, ["a panda"], [1], **how)
    (file,) = (tmp_path / "cache").rglob("*.png")
    good = file.read_bytes()
    CACHED[damage](file)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", UserWarning)
        assert torch.equal(generate(pipe, ["a panda"], [1], **how), first)
    assert f"{file}: damaged (" in str(said[0].message)
    if damage == "a folder":
        assert "images are not kept" in str(said[1].message)
    else:
        assert file.read_bytes() == good
        assert not os.path.islink(file)
    if damage == "a link":
        assert (tmp_path / "kept.txt").read_text() == "kept"
