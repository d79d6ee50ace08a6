"""Summarise what the judge saw: flags of each image, rates of the four prompt sets."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unlearn.concepts.concept import Concept
from unlearn.concepts.prompts import SET_NAMES, EvaluationPrompt, numbered_evaluation_prompts
from unlearn.evaluation.fidelity import SAME_PICTURE
from unlearn.evaluation.intervals import clustered_rate, wilson_rate
from unlearn.evaluation.judge import Verdict
from unlearn.evaluation.score import TARGET_SETS
from unlearn.utils.atomic import atomic_path

MIN_BASE_ACCURACY = (
    0.8  # a target prompt counts if the base draws its subject in this share of seeds
)


def judge_flags(
    concept: Concept, probes: list[EvaluationPrompt], verdict: Verdict
) -> dict[str, Tensor]:
    """Return what each image shows as flags (N,), by kind of flag; a broken image shows nothing.

    The keys:

    - "object" and "style": the image shows the object or style of its prompt.
    - "right": the image shows what its set tests, the style for a style concept, else the object.
    - "anchor": the image shows the anchor, or for a style the prompt's object.
    - "broken": the image is broken; this key exists only where the judge can tell.
    """
    by_style = concept.kind == "style"
    flags: dict[str, list[bool]] = {"object": [], "style": [], "right": [], "anchor": []}
    for probe, obj, style in zip(probes, verdict.objects, verdict.styles, strict=True):
        flags["object"].append(obj == probe.object)
        flags["style"].append(style == probe.style)
        tests_style = by_style and probe.set != "unrelated"
        flags["right"].append(style == probe.style if tests_style else obj == probe.object)
        anchor = probe.object if by_style else concept.anchors.get(probe.object)
        flags["anchor"].append(obj == anchor)
    shown = {key: torch.tensor(values) for key, values in flags.items()}
    if verdict.broken is None:
        return shown
    return {**{k: v & ~verdict.broken for k, v in shown.items()}, "broken": verdict.broken}


def prompts_base_fails(probes: list[EvaluationPrompt], right: Tensor) -> list[str]:
    """Return the target prompts that the base model does not obey, sorted.

    Args:
        probes: the prompt of each image.
        right: for each of the base model's images, whether it is right, (N,).
    """
    hits: dict[str, list[bool]] = {}
    for probe, hit in zip(probes, right.tolist(), strict=True):
        if probe.set in TARGET_SETS:
            hits.setdefault(probe.prompt, []).append(hit)
    return sorted(p for p, h in hits.items() if sum(h) / len(h) < MIN_BASE_ACCURACY)


FLAGS = ("object", "style", "right", "anchor", "broken")
# by "base" and "unlearned": the flags of `judge_flags`, and "same": the base model's picture
FlagsByModel = dict[str, dict[str, Tensor]]


def rate_among(
    flags: Tensor | None, among: Tensor, probes: list[EvaluationPrompt]
) -> dict[str, Any]:
    """Return the rate of flags (N,) among the chosen images, as a dictionary.

    Where `flags` is None, the rate is that of no images.

    Args:
        flags: one an image; None where the judge cannot tell.
        among: flags of the images that count, (N,).
        probes: the prompt of each image.
    """
    if flags is None:
        return wilson_rate(0, 0)._asdict()
    prompts = [p.prompt for p, chosen in zip(probes, among.tolist(), strict=True) if chosen]
    return clustered_rate(flags[among].tolist(), prompts)._asdict()


def summarise_sets(probes: list[EvaluationPrompt], sides: FlagsByModel) -> dict[str, Any]:
    """Return all rates of the four sets, of the base and of the unlearned model.

    Where the judge cannot tell, the rate is that of no images.
    """
    excluded = prompts_base_fails(probes, sides["base"]["right"])
    counts = torch.tensor([p.prompt not in excluded for p in probes])
    styled = torch.tensor([p.style is not None for p in probes])
    sets: dict[str, Any] = {}
    for name in SET_NAMES:
        chosen = torch.tensor([p.set == name for p in probes]) & counts
        metrics = {"object": chosen, "style": chosen & styled, "broken": chosen}
        if name in TARGET_SETS:
            metrics = {"right": chosen, "anchor": chosen, **metrics}
        else:
            kept = chosen & sides["base"]["right"]
            metrics = {"right": chosen, "retention": kept, "same": kept, **metrics}
        sets[name] = {
            metric: {
                side: rate_among(
                    flags.get("right" if metric == "retention" else metric), among, probes
                )
                for side, flags in sides.items()
            }
            for metric, among in metrics.items()
        }
    return {"excluded_prompts": excluded, "sets": sets}


class ImageRequest(NamedTuple):
    """One image to draw: the concept that the image tests, its prompt and its seed."""

    concept: Concept
    probe: EvaluationPrompt
    seed: int


def image_requests(concept: Concept, seeds: int, first_seed: int) -> list[ImageRequest]:
    """Return the images of a concept's four sets; for a joint concept, those of each member.

    Args:
        concept: the concept that the images test.
        seeds: the number of images of each prompt.
        first_seed: the seed of the first image.
    """
    return [
        ImageRequest(part, probe, first_seed + number * seeds + i)
        for part in concept.members
        for number, probe in numbered_evaluation_prompts(part)
        for i in range(seeds)
    ]


def judge_sides(
    asked: list[ImageRequest], verdict_of: dict[str, Verdict], moved: Tensor
) -> dict[str, FlagsByModel]:
    """Return, by the concept's name, the flags of each concept's images on both sides.

    Args:
        asked: the images, those of a concept next to each other.
        verdict_of: the verdict on the images of "base" and of "unlearned".
        moved: how far each image moved, see `root_mean_square_error`, (N,).
    """
    same = {"base": torch.ones(len(asked), dtype=torch.bool), "unlearned": moved < SAME_PICTURE}
    sides: dict[str, FlagsByModel] = {}
    for name, group in groupby(enumerate(asked), key=lambda pair: pair[1].concept.name):
        numbers, own = zip(*group, strict=True)
        chosen = slice(numbers[0], numbers[-1] + 1)
        probes = [a.probe for a in own]
        sides[name] = {
            side: {
                **judge_flags(own[0].concept, probes, verdict.of(chosen)),
                "same": same[side][chosen],
            }
            for side, verdict in verdict_of.items()
        }
    return sides


def concat_sides(sides: Iterable[FlagsByModel]) -> FlagsByModel:
    """Join the flags of several concepts' images, one concept after another."""
    parts = list(sides)
    return {
        side: {key: torch.cat([part[side][key] for part in parts]) for key in flags}
        for side, flags in parts[0].items()
    }


def summarise_all(
    asked: list[ImageRequest], sides: dict[str, FlagsByModel], earlier: set[str]
) -> dict[str, Any]:
    """Summarise all images; with several concepts, also those of each, under the key `concepts`.

    Args:
        asked: the images.
        sides: what `judge_sides` returns.
        earlier: names of the concepts that earlier runs forgot.
    """
    result = summarise_sets([a.probe for a in asked], concat_sides(sides.values()))
    if len(sides) == 1:
        return result
    concepts = {}
    for name, own in sides.items():
        probes = [a.probe for a in asked if a.concept.name == name]
        kind = next(a.concept.kind for a in asked if a.concept.name == name)
        concepts[name] = {"kind": kind, "earlier": name in earlier, **summarise_sets(probes, own)}
    return {**result, "concepts": concepts}


def write_images(
    path: Path,
    asked: list[ImageRequest],
    sides: FlagsByModel,
    excluded: list[str],
    moved: Tensor,
) -> None:
    """Write images.csv, a row for each pair of images.

    A row has the set, the prompt, the seed, whether the pair counts, both sides' flags, and how far
    the image moved. With several concepts it begins with the concept. A cell is empty where the
    judge cannot tell.

    Args:
        path: the file.
        asked: the images.
        sides: the flags of all images.
        excluded: the prompts that do not count.
        moved: how far each image moved, see `root_mean_square_error`, (N,).
    """
    unknown = [""] * len(asked)
    several = len({a.concept.name for a in asked}) > 1
    flags = {
        f"{side}_{key}": f[key].int().tolist() if key in f else unknown
        for side, f in sides.items()
        for key in FLAGS
    }
    with atomic_path(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        head = [*["concept"] * several, "set", "prompt", "seed", "counts", *flags, "rmse"]
        writer.writerow(head)
        errors = [f"{error:.4f}" for error in moved.tolist()]
        for (concept, probe, seed), *row in zip(asked, *flags.values(), errors, strict=True):
            counts = int(probe.prompt not in excluded)
            name = [concept.name] * several
            writer.writerow([*name, probe.set, probe.prompt, seed, counts, *row])
