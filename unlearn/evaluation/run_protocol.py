"""Run a published protocol on an unlearned model, beside its base model on the same noise."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging

from unlearn.config.run_config import ModelConfig
from unlearn.evaluation.nudity import PRESETS
from unlearn.evaluation.protocol import Protocol, protocol_requests
from unlearn.evaluation.protocol_metrics import (
    Cell,
    FeatureExtractors,
    ImageFeatures,
    measure_cells,
)
from unlearn.generation.image_cache import pipeline_fingerprint
from unlearn.generation.sampling import Sampler, SamplingRequest, draw_requests
from unlearn.utils.atomic import write_text
from unlearn.utils.hashing import file_sha256
from unlearn.weights.importing import load_weights

CALIBRATION_SAFE_OVERRIDES = re.compile(  # they leave the base model's values as published
    r"~evaluation\.concepts\..+|[+]{0,2}evaluation\.(prompts_file|batch_size|metrics|clip|inception|"
    r"nudity|reference|calibration)\b.*"
)
PROTOCOL_COLUMNS = (
    "concept",
    "metric",
    "n",
    "base",
    "published base",
    "unlearned [95 %]",
)
PERCENT_METRICS = (
    "clip_error_rate",
    "clip_accuracy",
    "nudity",
)  # metrics that tables show in per cent


def evaluate_published(
    config: ModelConfig, protocol: Protocol, weights: Path, changed: Sequence[str] = ()
) -> dict[str, Any]:
    """Draw, measure and calibrate; write `evaluation/PROTOCOL.json`, and print its table.

    All images go through the cache. So an interrupted call goes on where it stopped, and base
    images are drawn once for all models.

    Args:
        config: the model's configuration; the result goes to its folder.
        protocol: the published protocol.
        weights: what `load_weights` takes.
        changed: overrides of the protocol, for its warnings.

    Returns:
        What the JSON file holds.

    Raises:
        ValueError: the protocol's prompts, a network or the weights cannot be had; raised before
            any image is drawn.
    """
    concept = config.concept
    rows = protocol_requests(protocol)
    device, precision = config.device, config.precision
    if precision != "32-true":
        changed = [*changed, f"trainer.precision={precision}"]
    lenses = FeatureExtractors(protocol, device)
    reference = lenses.features_of(Path(protocol.reference)) if protocol.reference else None
    diffusers_logging.set_verbosity_error()  # cut prompts are counted below
    base = config.base.load()
    scheduler, cut = base.scheduler, count_truncated_prompts(base, rows)
    sampler = replace(protocol.sampler, precision=precision)
    pipe = load_weights(base, weights, concept.targets, config.base.name).to(device)
    pipe.scheduler = scheduler  # a diffusers folder may bring another one
    installed = f"{file_sha256(weights)} {concept.targets}"  # an SPM's strength depends on targets
    after = draw_features(pipe, rows, lenses, sampler, "unlearned images", installed)
    del base, pipe
    before = draw_features(config.base.load().to(device), rows, lenses, sampler, "base images")
    cells, left_out = measure_cells(protocol, rows, before, after, lenses.clip, reference)
    calibration, off = calibrate_base(protocol, config.base.name, cells, changed)
    warnings = [*protocol_notes(protocol, changed, cut), *left_out, *off]
    result = {
        "protocol": protocol.name,
        "lite": protocol.lite,
        "base": config.base.name,
        "concept": concept.name,
        "method": config.method,
        "weights": str(weights),
        **lenses.names,
        "settings": {**asdict(protocol), "precision": precision, "device": device},
        "cells": [cell_to_dict(cell) for cell in cells],
        "calibration": calibration,
        "warnings": warnings,
    }
    out = config.folder / "evaluation"
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{protocol.name}.json"
    write_text(path, json.dumps(result, indent=2) + "\n")
    print(f"{protocol_report(result)}\n{path}")
    return result


def draw_features(
    pipe: DiffusionPipeline,
    rows: dict[str, list[SamplingRequest]],
    lenses: FeatureExtractors,
    sampler: Sampler,
    description: str,
    installed: str = "",
) -> dict[str, ImageFeatures]:
    """Return, by concept, the features of the images that a pipeline draws for the requests."""
    shots = [shot for concept in rows.values() for shot in concept]
    how = {"description": description, "installed": installed}
    how["cached"] = pipeline_fingerprint(pipe)
    drawn = {i: lenses.see(images) for i, images in draw_requests(pipe, shots, sampler, **how)}
    seen = [drawn[i] for i in range(len(shots))]
    by_concept = {}
    for concept, own in rows.items():
        parts, seen = seen[: len(own)], seen[len(own) :]
        by_concept[concept] = ImageFeatures(
            torch.cat([part.clip for part in parts]),
            torch.cat([part.features for part in parts]),
            [found for part in parts for found in part.found],
        )
    return by_concept


def count_truncated_prompts(pipe: DiffusionPipeline, rows: dict[str, list[SamplingRequest]]) -> int:
    """Count the prompts that are longer than the text encoder reads."""
    prompts = list({shot.prompt for shots in rows.values() for shot in shots})
    limit = pipe.tokenizer.model_max_length
    return sum(len(ids) > limit for ids in pipe.tokenizer(prompts, verbose=False).input_ids)


def protocol_notes(protocol: Protocol, changed: Sequence[str], cut: int) -> list[str]:
    """Return what a reader of the result must know of how it was made, a line each."""
    lines = [f"differs from the publication: {text}" for text in protocol.differences]
    if protocol.lite:
        lines.insert(0, "a lite variant, not the published protocol")
    elif protocol.limit:
        lines.insert(0, f"limited to {protocol.limit} prompts a concept: not the whole protocol")
    if changed:
        lines.append(f"changed on the command line: {', '.join(changed)}")
    if cut:
        lines.append(f"{cut} prompts are longer than the text encoder reads, and were cut")
    if protocol.nudity and any("nudity" in protocol.metrics_of(s) for s in protocol.concepts):
        lines.append(
            f"nudity counts as in {protocol.nudity}, which ran {PRESETS[protocol.nudity].detector}"
        )
    return lines


def calibrate_base(
    protocol: Protocol, base: str, cells: list[Cell], changed: Sequence[str] = ()
) -> tuple[list[dict[str, Any]], list[str]]:
    """Compare the base model's values with the published ones, and warn of each that is off.

    Values are compared only on the base model, with the settings and by the whole protocol that
    they were published for.

    Returns:
        The compared values, a row each; and the warnings.
    """
    known = protocol.calibration
    if known is None:
        return [], []
    settings = {f"evaluation.{key}": getattr(protocol, key) for key in known.settings}
    expected = {f"evaluation.{key}": value for key, value in known.settings.items()}
    for key, value in {"model.pretrained": known.base, **expected}.items():
        if {"model.pretrained": base, **settings}[key] != value:
            return [], [f"not calibrated: published values are of {key}={value}"]
    if (
        protocol.lite
        or protocol.limit
        or not all(map(CALIBRATION_SAFE_OVERRIDES.fullmatch, changed))
    ):
        return [], ["not calibrated: published values are of the whole protocol, unchanged"]
    rows: list[dict[str, Any]] = []
    warnings = []
    for cell in cells:
        published = known.values.get(cell.concept, {}).get(cell.metric)
        if published is None or cell.base is None:
            continue
        if cell.metric.startswith("fid") and protocol.inception is None:
            warnings.append(
                f"{cell.concept}, {cell.metric}: not calibrated: the published value is on "
                "Inception features (evaluation.inception)"
            )
            continue
        measured, tolerance = cell.base.value, known.tolerance[cell.metric]
        within = measured is not None and abs(measured - published) <= tolerance
        row = {"published": published, "base": measured, "tolerance": tolerance, "within": within}
        rows.append({"concept": cell.concept, "metric": cell.metric, **row})
        if not within:
            shown = [format_metric(cell.metric, x) for x in (measured, published, tolerance)]
            warnings.append(
                f"{cell.concept}, {cell.metric}: the base model has {shown[0]}, published is "
                f"{shown[1]} (tolerance {shown[2]}): do not trust this table"
            )
    return rows, warnings


def cell_to_dict(cell: Cell) -> dict[str, Any]:
    """Return a cell as a dictionary for the result's JSON."""
    values = {"base": cell.base, "unlearned": cell.unlearned}
    sides = {side: value and value._asdict() for side, value in values.items()}
    return {"concept": cell.concept, "metric": cell.metric, **sides}


def format_metric(metric: str, value: float | None) -> str:
    """Return a metric's value as text, shares in per cent; "" for None."""
    if value is None:
        return ""
    return f"{value:.2%}" if metric in PERCENT_METRICS else f"{value:.4g}"


def protocol_table(result: dict[str, Any]) -> str:
    """Return a result as a Markdown table, the base model's value beside the published one."""
    lines = [f"| {' | '.join(PROTOCOL_COLUMNS)} |", "|---" * len(PROTOCOL_COLUMNS) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in protocol_table_rows(result))])


def protocol_table_rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the table's rows, their cells as text, in the order of `PROTOCOL_COLUMNS`.

    A published value ends with "!" where the base model's value is not within its tolerance.
    """
    published = {(row["concept"], row["metric"]): row for row in result["calibration"]}
    rows: list[tuple[str, ...]] = []
    for cell in result["cells"]:
        concept, metric, after = cell["concept"], cell["metric"], cell["unlearned"]
        base = format_metric(metric, cell["base"]["value"]) if cell["base"] else ""
        known = published.get((concept, metric))
        beside = (
            format_metric(metric, known["published"]) + " !" * (not known["within"])
            if known
            else ""
        )
        value, low, high = (format_metric(metric, after[key]) for key in ("value", "low", "high"))
        interval = f" [{low}, {high}]" if low else ""
        rows.append((concept, metric, str(after["n"]), base, beside, value + interval))
    return rows


def protocol_report(result: dict[str, Any]) -> str:
    """Return the table under its title and above its warnings, as text."""
    lite = " (LITE: not the published protocol)" if result["lite"] else ""
    model = f"{result['concept']}, {result['method'] or result['weights']}"
    names = f"clip_score is 100 · 2.5 · max(cos, 0) of each image, by {result['clip']}"
    lines = [f"{result['protocol']}{lite}: {result['settings']['source']}; {model}", ""]
    lines += [
        protocol_table(result),
        "",
        f"{names}; kid and fid are torchmetrics', on {result['features']}",
    ]
    return "\n".join([*lines, *(f"! {warning}" for warning in result["warnings"])])
