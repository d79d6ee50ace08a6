"""Fetch published prompt files once, check them, and read them."""

from __future__ import annotations

import ast
import csv
import hashlib
import io
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple
from urllib.request import urlopen

from tqdm import tqdm

from unlearn.generation.image_cache import cache_folder
from unlearn.utils.atomic import atomic_path
from unlearn.utils.checks import check_number

ADDRESS = "https://raw.githubusercontent.com/{repository}/{commit}/{file}"
LARGEST_SIDE = 8192  # pixels
LARGEST_GUIDANCE = 1000.0
TIMEOUT = 30  # seconds to wait for an answer
# names of the columns of seed, scale and size in the repositories' files
SEEDS = ("evaluation_seed", "sd_seed")
GUIDANCES = ("evaluation_guidance", "sd_guidance_scale")
SIZES = (("height", "width"), ("sd_image_height", "sd_image_width"))


class Prompt(NamedTuple):
    """A row of a prompt file; None stands for what the file does not say."""

    text: str
    seed: int | None = None
    guidance_scale: float | None = None
    size: tuple[int, int] | None = None  # (height, width)


def read_csv(text: str) -> list[Prompt]:
    """Read prompts from a CSV table's column `prompt`, with their seeds, scales and sizes.

    Raises:
        ValueError: there is no such column, a line has not as many cells as the first, a cell holds
            other rows, as after a stray quote, or a number is none or out of its bounds.
    """
    table = csv.DictReader(io.StringIO(text), strict=True)
    try:
        columns, rows = list(table.fieldnames or []), list(table)
    except csv.Error as error:
        raise ValueError(f"line {table.line_num}: {error}; a stray quote?") from error
    if "prompt" not in columns:
        raise ValueError(f"no column 'prompt' among {columns}")
    if len({*columns}) < len(columns):
        raise ValueError(f"two columns of one name among {columns}")
    seed = next((c for c in SEEDS if c in columns), None)
    guidance_scale = next((c for c in GUIDANCES if c in columns), None)
    size = next((pair for pair in SIZES if {*pair} <= {*columns}), None)
    prompts = []
    for number, row in enumerate(rows, 1):
        if None in row or None in row.values():
            raise ValueError(f"row {number} has not the {len(columns)} cells of {columns}")
        if any(holds_rows(cell, len(columns)) for cell in row.values()):
            raise ValueError(f"row {number} has a cell that holds other rows; a stray quote?")
        if not row["prompt"].strip():
            raise ValueError(f"row {number} has an empty prompt")
        where = f"row {number}: "
        prompts.append(
            Prompt(
                row["prompt"],
                whole_number(where + seed, row[seed], 0, 2**63 - 1) if seed else None,
                guidance(where + guidance_scale, row[guidance_scale]) if guidance_scale else None,
                tuple(whole_number(where + c, row[c], 8, LARGEST_SIDE) for c in size)  # type: ignore[arg-type]
                if size
                else None,
            )
        )
    return prompts


def holds_rows(cell: str, columns: int) -> bool:
    """Return whether a cell of several lines, as a caption may be, holds whole rows of its table.

    Args:
        cell: the cell.
        columns: the number of the table's columns.
    """
    return any(line.count(",") >= columns - 1 > 0 for line in cell.splitlines()[1:])


def whole_number(key: str, text: str, at_least: int, at_most: int) -> int:
    """Return a cell's whole number.

    Raises:
        ValueError: the cell holds no whole number, or one out of its bounds.
    """
    try:
        value = int(text)
    except ValueError as error:
        raise ValueError(f"{key}={text!r}: a whole number is needed") from error
    check_number(key, value, at_least=at_least, at_most=at_most)
    return value


def guidance(key: str, text: str) -> float:
    """Return a cell's scale of classifier-free guidance.

    Raises:
        ValueError: the cell holds no number, or one out of its bounds.
    """
    try:
        value = float(text)
    except ValueError as error:
        raise ValueError(f"{key}={text!r}: a number is needed") from error
    check_number(key, value, at_least=0, at_most=LARGEST_GUIDANCE)
    return value


def read_templates(text: str) -> list[Prompt]:
    """Read the strings of the list `imagenet_templates` in Python source.

    The source is parsed and never run.

    Raises:
        ValueError: there is no such list of strings that each hold `{}` once.
    """
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        raise ValueError(f"not Python: {error}") from error
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "imagenet_templates":
            templates = ast.literal_eval(node.value)
            if any(not isinstance(t, str) or t.count("{}") != 1 for t in templates):
                raise ValueError("imagenet_templates holds more than strings with one {} each")
            return [Prompt(template) for template in templates]
    raise ValueError("no list imagenet_templates")


def read_lines(text: str) -> list[Prompt]:
    """Read one prompt a line; empty lines do not count."""
    return [Prompt(line.strip()) for line in text.splitlines() if line.strip()]


FORMATS: dict[str, Callable[[str], list[Prompt]]] = {
    "csv": read_csv,
    "templates": read_templates,
    "lines": read_lines,
}


def read_prompts(data: bytes, kind: str, name: str) -> list[Prompt]:
    """Read the prompts of a file in the format `kind`, a key of `FORMATS`.

    Raises:
        ValueError: the file is not of the format, or holds no prompt; names the file.
    """
    try:
        if b"\0" in data:
            raise ValueError("holds a character NUL")
        prompts = FORMATS[kind](data.decode("utf-8-sig"))  # Excel begins with a byte-order mark
    except (ValueError, TypeError, RecursionError, MemoryError) as error:  # of Python's parser too
        raise ValueError(f"{name}: not of evaluation.format={kind!r}: {error}") from error
    if not prompts:
        raise ValueError(f"{name}: holds no prompts")
    return prompts


def check_hash(data: bytes, expected: str, name: str) -> bytes:
    """Return `data` if its SHA-256 is that of the published file.

    Raises:
        ValueError: the hashes differ; names the file and both hashes.
    """
    found = hashlib.sha256(data).hexdigest()
    if found != expected:
        raise ValueError(
            f"{name}: its SHA-256 is {found}, the published file's is {expected}; the file is not "
            "used (evaluation.sha256=null takes a file of one's own in evaluation.prompts_file)"
        )
    return data


def own_path(path: str, file: str) -> Path:
    """Return the user's own file: `path`, or in the folder `path` the file of the same name."""
    return Path(path) / Path(file).name if Path(path).is_dir() else Path(path)


def local_file(path: str, file: str, expected: str | None) -> bytes:
    """Return the content of a prompt file at the user's path.

    Args:
        path: the file, or a folder that holds the file under its own name.
        file: the file's path in the repository.
        expected: the published file's SHA-256; None: any file is taken.

    Raises:
        ValueError: the file is not there, or has another hash.
    """
    place = own_path(path, file)
    if not place.is_file():
        raise ValueError(f"evaluation.prompts_file={path!r}: there is no file {place}")
    data = place.read_bytes()
    return check_hash(data, expected, str(place)) if expected else data


def published_file(repository: str, commit: str, file: str, expected: str) -> bytes:
    """Return the content of a file of a GitHub repository, which is fetched once and then cached.

    Raises:
        ValueError: the file cannot be fetched, or what came has another hash than `expected`.
    """
    kept = cache_folder() / "prompts" / f"{expected}-{Path(file).name}"
    if kept.exists() and hashlib.sha256(kept.read_bytes()).hexdigest() == expected:
        return kept.read_bytes()
    address = ADDRESS.format(repository=repository, commit=commit, file=file)
    try:
        data = fetch(address)
    except (OSError, HTTPException) as error:
        raise ValueError(
            f"{address}: cannot be fetched ({error}); without a network, fetch it elsewhere and "
            "give evaluation.prompts_file=PATH (several files: their folder)"
        ) from error
    check_hash(data, expected, address)
    kept.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(kept) as partial:
        partial.write_bytes(data)
    return data


def fetch(address: str) -> bytes:
    """Return what an address serves, with a progress bar.

    Raises:
        OSError, HTTPException: the address cannot be reached, or the connection broke.
    """
    with urlopen(address, timeout=TIMEOUT) as answer:
        size = int(answer.headers.get("Content-Length") or 0) or None
        parts = []
        with tqdm(total=size, desc=Path(address).name, unit="B", unit_scale=True) as progress:
            while part := answer.read(1 << 16):
                parts.append(part)
                progress.update(len(part))
    return b"".join(parts)
