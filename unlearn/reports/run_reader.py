"""Read a finished run from its directory."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from unlearn.concepts.prompts import SET_NAMES
from unlearn.config.run_files import (
    BudgetRecord,
    ProtocolResult,
    Result,
    read_images,
    read_metrics,
    read_result,
)
from unlearn.config.saved import load_run_config
from unlearn.evaluation.pictures import pictured_rows, tile_box
from unlearn.reports.comparison import comparable_settings
from unlearn.utils.files import damage_as_value_errors, read_json
from unlearn.utils.images import read_image
from unlearn.utils.units import GIB, format_duration

Fact = str | int | float | bool | None  # of environment.json


class Tile(NamedTuple):
    """One prompt of `before_after.png`.

    Attributes:
        part: the prompt's set.
        prompt: the prompt.
        seed: the seed of its noise.
        base: the base model's image, as a data URI.
        unlearned: the unlearned model's image, as a data URI.
        moved: the root mean square error of the two.
    """

    part: str
    prompt: str
    seed: str
    base: str
    unlearned: str
    moved: str


@dataclass(frozen=True)
class FinishedRun:
    """The contents of a finished run's files.

    Attributes:
        name: the run's name on the page.
        folder: the run directory.
        config: the object of config.yaml.
        result: the object of result.json.
        anchors: the anchor of each target; "" is no style.
        base: the base model's name.
        unsafe: whether an image may be explicit.
        tiles: the images of before_after.png; empty if no images.csv tells what they show.
        picture: the whole before_after.png as a data URI if `tiles` is empty, and "" otherwise.
        metrics: the points (step, value) of each metric of metrics.csv.
        environment: versions, device, time and memory, by label; empty if not recorded.
        evaluations: the results of published protocols.
    """

    name: str
    folder: Path
    config: dict[str, Any]
    result: Result
    anchors: dict[str, str]
    base: str
    unsafe: bool
    tiles: list[Tile]
    picture: str
    metrics: dict[str, list[tuple[float, float]]]
    environment: dict[str, str]
    evaluations: list[ProtocolResult]

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the run and of its last evaluation that can change the result."""
        evaluated = self.result.get("settings", {})
        return comparable_settings(self.config) | {
            f"evaluation.{k}": v for k, v in evaluated.items()
        }


def read_run(folder: Path, name: str) -> FinishedRun:
    """Return the finished run in a directory.

    Args:
        folder: the run directory.
        name: the run's name on the page.

    Raises:
        ValueError: the run is not finished, or a file of the run is damaged.
    """
    config = load_run_config(folder)
    for file in ("result.json", "before_after.png"):
        if not (folder / file).exists():
            raise ValueError(
                f"{folder}: not a finished run directory, {file} is missing; "
                f"`unlearn evaluate {folder}` writes it"
            )
    sections = [*config.earlier, *config.sections]
    anchors = {target: anchor for own in sections for target, anchor in own.anchors.items()}
    picture = read_picture(folder / "before_after.png")
    tiles = read_tiles(folder, picture)
    return FinishedRun(
        name=name,
        folder=folder,
        config=dict(config.saved),
        result=read_result(folder / "result.json"),
        anchors=anchors,
        base=config.base.name,
        unsafe=any(own.concept.kind == "unsafe" for own in sections),
        tiles=tiles,
        picture="" if tiles else data_uri(picture),
        metrics=read_metrics(folder / "metrics.csv"),
        environment=read_environment(folder),
        evaluations=[
            read_json(p, ProtocolResult) for p in sorted(folder.glob("evaluation/*.json"))
        ],
    )


def read_environment(folder: Path) -> dict[str, str]:
    """Return the facts of a run's environment.json and budget.json, by label.

    Raises:
        ValueError: one of the files is damaged.
    """
    facts: dict[str, str] = {}
    if (path := folder / "environment.json").exists():
        facts |= {key: str(fact) for key, fact in read_json(path, dict[str, Fact]).items()}
    if (path := folder / "budget.json").exists():
        budget = read_json(path, BudgetRecord)
        facts[f"time of {budget['count']} steps"] = format_duration(budget["measured"]["steps"])
        facts["memory at its peak"] = f"{budget['measured']['memory'] / GIB:.1f} GiB"
    return facts


def data_uri(image: Image.Image) -> str:
    """Return an image as a data URI, in lossless WebP."""
    file = io.BytesIO()
    image.save(file, format="WEBP", lossless=True)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"


def read_picture(path: Path) -> Image.Image:
    """Return the picture of a run's before_after.png.

    Raises:
        ValueError: the file is damaged.
    """
    with damage_as_value_errors(path):
        return Image.fromarray(read_image(path).permute(1, 2, 0).numpy())


def read_tiles(folder: Path, picture: Image.Image) -> list[Tile]:
    """Return the images that before_after.png is made of, those of the `pictured_rows`.

    The list is empty without an images.csv, as in an old run without a judge.

    Args:
        folder: the run directory.
        picture: the picture of before_after.png.

    Raises:
        ValueError: images.csv is damaged.
    """
    tiles, rows = [], read_images(folder)
    with damage_as_value_errors(folder / "before_after.png"):
        for part in SET_NAMES:
            for column, row in enumerate(pictured_rows([r for r in rows if r["set"] == part])):
                boxes = [tile_box(picture.width, part, side, column) for side in (0, 1)]
                base, after = (data_uri(picture.crop(box)) for box in boxes)
                tiles.append(Tile(part, row["prompt"], row["seed"], base, after, row["rmse"]))
    return tiles
