"""Read the files of a run, each through one schema that refuses what is damaged."""

from __future__ import annotations

import csv
import io
import math
import re
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Literal,
    NotRequired,  # as pydantic asks before Python 3.12
)

from pydantic import AfterValidator, ConfigDict, Field, with_config
from typing_extensions import TypedDict

from unlearn.concepts.prompts import SET_NAMES
from unlearn.utils.files import damage_as_value_errors, read_json, read_text
from unlearn.utils.hashing import file_sha256

Finite = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]
MORE = ConfigDict(extra="allow")  # files of later versions may hold more
LARGEST_SHOWN = 1e100  # of a metric; larger ones cannot be drawn, nor those that are not finite
IMAGE_FLAGS = ("right", "anchor", "broken")  # of each side in images.csv: what scores count


@with_config(MORE)
class RateRecord(TypedDict):
    """A share with its interval, and the number of images; None where there is no image."""

    value: Share | None
    low: Share | None
    high: Share | None
    n: Count


def check_value(rate: Any) -> Any:
    """Refuse a rate or a mean of images that has no value.

    Raises:
        ValueError: there are images, and no value or no interval.
    """
    if rate["n"] and None in (rate["value"], rate["low"], rate["high"]):
        raise ValueError(f"{rate['n']} images and no value")
    return rate


@with_config(MORE)
class RatePair(TypedDict):
    """The shares of the base model and of the unlearned model."""

    base: Annotated[RateRecord, AfterValidator(check_value)]
    unlearned: Annotated[RateRecord, AfterValidator(check_value)]


@with_config(MORE)
class SetRates(TypedDict):
    """The rates that each of the four prompt sets has."""

    right: RatePair
    object: RatePair
    style: RatePair
    broken: RatePair


class TargetRates(SetRates):
    """The rates of a target set."""

    anchor: RatePair


class KeptRates(SetRates):
    """The rates of a set to keep."""

    retention: RatePair
    same: RatePair


class AllRates(TypedDict):
    """The rates of the four prompt sets."""

    seen_target: TargetRates
    unseen_target: TargetRates
    related: KeptRates
    unrelated: KeptRates


@with_config(ConfigDict(extra="forbid"))
class NoRates(TypedDict):
    """The rates of a run without a judge: none."""


@with_config(MORE)
class ConceptResult(TypedDict):
    """What a run of several concepts holds of each."""

    kind: Literal["instance", "style", "unsafe"]
    earlier: bool
    excluded_prompts: list[str]
    sets: AllRates


@with_config(MORE)
class Result(TypedDict):
    """What result.json holds: see `evaluation.evaluate`."""

    concept: str
    kind: str  # of several concepts, such as "instance+style"
    method: str | None
    settings: dict[str, Any]
    excluded_prompts: list[str]
    sets: AllRates | NoRates
    concepts: NotRequired[dict[str, ConceptResult]]
    judge: NotRequired[str]
    sha256: dict[str, str]


@with_config(MORE)
class MeanRecord(TypedDict):
    """A mean with its interval, and the number of images."""

    value: Finite | None
    low: Finite | None
    high: Finite | None
    n: Count


@with_config(MORE)
class CellRecord(TypedDict):
    """One metric of one concept of a published protocol."""

    concept: str
    metric: str
    base: Annotated[MeanRecord, AfterValidator(check_value)] | None
    unlearned: Annotated[MeanRecord, AfterValidator(check_value)]


@with_config(MORE)
class CalibrationRecord(TypedDict):
    """A value of the base model beside the published one."""

    concept: str
    metric: str
    published: Finite
    base: Finite | None
    tolerance: Finite
    within: bool


@with_config(MORE)
class ProtocolResult(TypedDict):
    """What evaluation/PROTOCOL.json holds: see `evaluation.run_protocol`."""

    protocol: str
    lite: bool
    base: str
    concept: str
    method: str | None
    weights: str
    clip: str
    features: str
    settings: dict[str, Any]
    cells: list[CellRecord]
    calibration: list[CalibrationRecord]
    warnings: list[str]


@with_config(MORE)
class Measured(TypedDict):
    """The memory, in bytes, and the seconds that the steps took."""

    memory: Count
    steps: Annotated[float, Field(ge=0, allow_inf_nan=False)]


@with_config(MORE)
class BudgetRecord(TypedDict):
    """What budget.json holds: see `training.budget`."""

    measured: Measured
    count: Count


def read_result(path: Path) -> Result:
    """Return the content of a result.json.

    Raises:
        ValueError: the file is damaged.
    """
    return read_json(path, Result)


def read_images(run: Path) -> list[dict[str, str]]:
    """Return the rows of a run's images.csv; none where the run is not evaluated yet.

    Raises:
        ValueError: the file is damaged, or is not the one that result.json was made with.
    """
    path = run / "images.csv"
    if not path.exists():
        return []
    if (run / "result.json").exists():
        written = read_result(run / "result.json")["sha256"].get("images.csv")
        if written not in (None, file_sha256(path)):
            raise ValueError(
                f"{path}: changed since the evaluation wrote it; `unlearn evaluate {run}` writes "
                "it again"
            )
    with damage_as_value_errors(path):
        return parse_images(read_text(path))


def parse_images(text: str) -> list[dict[str, str]]:
    """Return the rows of an images.csv.

    Raises:
        ValueError: a column is missing, or a cell holds what it cannot.
    """
    rows = []
    for number, row in enumerate(csv.DictReader(io.StringIO(text), strict=True), 2):
        flags = {f"{side}_{flag}" for side in ("base", "unlearned") for flag in IMAGE_FLAGS}
        if missing := {"set", "prompt", "seed", "counts", *flags} - {
            key for key, cell in row.items() if cell is not None
        }:
            raise ValueError(f"line {number} has no {sorted(missing)[0]}")
        if None in row:
            raise ValueError(f"line {number} has more cells than the first")
        if row["set"] not in SET_NAMES:
            raise ValueError(f"line {number} has set={row['set']!r}, none of {SET_NAMES}")
        if not row["seed"].isdecimal() or row["counts"] not in ("0", "1"):
            raise ValueError(f"line {number} has seed={row['seed']!r}, counts={row['counts']!r}")
        told = [key for key in row if key.startswith(("base_", "unlearned_"))]
        if wrong := [flag for flag in told if row[flag] not in ("", "0", "1")]:
            raise ValueError(f"line {number} has {wrong[0]}={row[wrong[0]]!r}, not 0, 1 or nothing")
        if not re.fullmatch(r"0\.\d+|1\.0+", row.get("rmse", "")):
            raise ValueError(f"line {number} has rmse={row.get('rmse')!r}: 0 to 1 is needed")
        rows.append(row)
    return rows


def read_metrics(path: Path) -> dict[str, list[tuple[float, float]]]:
    """Return the points (step, value) of each metric of a metrics.csv; empty without the file.

    Values that cannot be drawn are left out: those that are not finite, or above `LARGEST_SHOWN`.

    Raises:
        ValueError: the file is damaged.
    """
    points: dict[str, list[tuple[float, float]]] = {}
    if not path.exists():
        return points
    with damage_as_value_errors(path):
        for row in csv.DictReader(io.StringIO(read_text(path)), strict=True):
            step = float(row.pop("step"))
            if not 0 <= step < LARGEST_SHOWN or step != int(step):
                raise ValueError(f"step={step}: a whole number of at least 0 is needed")
            for name, text in row.items():
                value = float(text) if text else math.nan
                if math.isfinite(value) and abs(value) <= LARGEST_SHOWN:
                    shown = value if abs(value) > 1 / LARGEST_SHOWN else 0.0
                    points.setdefault(name, []).append((step, shown))
    return points
