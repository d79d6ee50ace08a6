"""Damaged pictures, and pictures of other kinds."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from tests.helpers.bad_input import Case, files


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
