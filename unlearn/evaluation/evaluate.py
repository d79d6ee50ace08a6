"""Evaluate a run on the four prompt sets, beside the base model on the same prompts and noise."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from PIL import Image, ImageDraw
from torch import Tensor

from unlearn.backbone import device_of, load_pipeline
from unlearn.concepts import Concept
from unlearn.config import base_of, concept_of, sampler_of
from unlearn.evaluation.judge import Judge, Verdict
from unlearn.evaluation.metrics import Rate, rate
from unlearn.export import load_unlearned
from unlearn.generate import generate
from unlearn.prompts import Probe, evaluation_probes
from unlearn.vocabulary import EMBEDDED, vocabulary

SETS = ("seen_target", "unseen_target", "related", "unrelated")
TARGET_SETS = SETS[:2]
OBEYED = 0.8  # a prompt counts only if the base draws its subject in this share of seeds


def verdicts(concept: Concept, probes: list[Probe], verdict: Verdict) -> dict[str, Tensor]:
    """What each image shows, as flags (N,); a broken image shows nothing.

    Keys: "object" and "style" (the prompt's), "right" (what its set tests: the style for a style
    concept, else the object), "anchor" (for a style, the prompt's object) and "broken".
    """
    words = vocabulary()
    objects = [words.names[i] for i in verdict.objects.tolist()]
    styles = [words.styles[i] for i in verdict.styles.tolist()]
    by_style = concept.kind == "style"
    flags: dict[str, list[bool]] = {"object": [], "style": [], "right": [], "anchor": []}
    for probe, obj, style in zip(probes, objects, styles, strict=True):
        flags["object"].append(obj == probe.object)
        flags["style"].append(style == probe.style)
        tests_style = by_style and probe.set != "unrelated"
        flags["right"].append(style == probe.style if tests_style else obj == probe.object)
        anchor = probe.object if by_style else concept.anchors.get(probe.object)
        flags["anchor"].append(obj == anchor)
    shown = {k: torch.tensor(v) & ~verdict.broken for k, v in flags.items()}
    return {**shown, "broken": verdict.broken}


def disobeyed(probes: list[Probe], right: Tensor) -> list[str]:
    """The target prompts that the base model does not obey."""
    hits: dict[str, list[bool]] = {}
    for probe, hit in zip(probes, right.tolist(), strict=True):
        if probe.set in TARGET_SETS:
            hits.setdefault(probe.prompt, []).append(hit)
    return sorted(p for p, h in hits.items() if sum(h) / len(h) < OBEYED)


Sides = dict[str, dict[str, Tensor]]  # "base" and "unlearned": what `verdicts` gives


def summarise(probes: list[Probe], sides: Sides) -> dict[str, Any]:
    """All rates of the four sets, of the base and of the unlearned model."""
    excluded = disobeyed(probes, sides["base"]["right"])
    counts = torch.tensor([p.prompt not in excluded for p in probes])
    styled = torch.tensor([p.style is not None for p in probes])
    sets: dict[str, Any] = {}
    for name in SETS:
        chosen = torch.tensor([p.set == name for p in probes]) & counts
        metrics = {"object": chosen, "style": chosen & styled, "broken": chosen}
        if name in TARGET_SETS:
            metrics = {"right": chosen, "anchor": chosen, **metrics}
        else:
            metrics = {"right": chosen, "retention": chosen & sides["base"]["right"], **metrics}
        sets[name] = {
            metric: {
                side: rate(
                    int((flags["right" if metric == "retention" else metric] & among).sum()),
                    int(among.sum()),
                )._asdict()
                for side, flags in sides.items()
            }
            for metric, among in metrics.items()
        }
    return {"excluded_prompts": excluded, "sets": sets}


def write_images(
    path: Path, probes: list[Probe], seeds: list[int], sides: Sides, excluded: list[str]
) -> None:
    """One row an image pair: set, prompt, seed, whether it counts, and both sides' flags."""
    flags = {f"{side}_{key}": v.int().tolist() for side, f in sides.items() for key, v in f.items()}
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["set", "prompt", "seed", "counts", *flags])
        for probe, seed, *row in zip(probes, seeds, *flags.values(), strict=True):
            counts = int(probe.prompt not in excluded)
            writer.writerow([probe.set, probe.prompt, seed, counts, *row])


def table(result: dict[str, Any]) -> str:
    """The four sets as a Markdown table; each cell is base → unlearned [95 % interval]."""
    columns = ("right", "anchor", "retention", "object", "style", "broken")
    lines = ["| set | n | " + " | ".join(columns) + " |", "|---" * (len(columns) + 2) + "|"]
    for name, row in result["sets"].items():
        cells = []
        for column in columns:
            pair = {k: Rate(**v) for k, v in row[column].items()} if column in row else {}
            if not pair or not pair["base"].n:
                cells.append("")
            elif column == "retention":
                cells.append(str(pair["unlearned"]))
            else:
                cells.append(f"{pair['base'].value:.0%} → {pair['unlearned']}")
        lines.append(f"| {name} | {row['right']['base']['n']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


PICTURED = 8  # prompts of each set in the picture


def pictured(items: list[Any]) -> list[Any]:
    """Up to `PICTURED` of the items, evenly spaced."""
    return items[:: max(1, len(items) // PICTURED)][:PICTURED]


TILE, MARGIN, GAP = 128, 150, 12  # pixels of the picture


def tile_corner(part: str, side: int, column: int) -> tuple[int, int]:
    """Where a tile of `before_after` lies: of a set, side (0: base, 1: unlearned) and column."""
    top = SETS.index(part) * (2 * TILE + GAP) + side * TILE
    return MARGIN + column * TILE, top


def before_after(probes: list[Probe], base: Tensor, after: Tensor, path: Path) -> None:
    """A picture: up to eight prompts a set, the base model's row above the unlearned model's."""
    size = (MARGIN + PICTURED * TILE, len(SETS) * (2 * TILE + GAP))
    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    for name in SETS:
        chosen = pictured([i for i, p in enumerate(probes) if p.set == name])
        for side, images in enumerate((base, after)):
            label = f"{name.replace('_', ' ')}\n{('base', 'unlearned')[side]}"
            top = tile_corner(name, side, 0)[1]
            draw.multiline_text((8, top + TILE // 2 - 16), label, "black", font_size=16)
            for column, i in enumerate(chosen):
                image = Image.fromarray(images[i].permute(1, 2, 0).numpy()).resize((TILE, TILE))
                picture.paste(image, tile_corner(name, side, column))
    picture.save(path)


def load_judge(config: DictConfig) -> Judge | None:
    """The judge of `evaluation.judge`, by default the embedded model's; None for other models."""
    if config.model.vocabulary is None:
        return None
    return Judge.load(Path(config.evaluation.judge or EMBEDDED / "judges" / "judge"))


def evaluate(config: DictConfig, run: Path) -> dict[str, Any]:
    """Draw, judge and compare; write what a run directory lists of results, and print the table.

    That is `result.json`, `images.csv` and `before_after.png`; where no judge knows what the model
    draws (`model.vocabulary` is null), the picture and a result without `sets`.
    """
    concept = concept_of(config)
    settings = config.evaluation
    judge = load_judge(config)
    probes = [p for p in evaluation_probes(concept) for _ in range(settings.seeds)]
    if judge is None:
        probes = [p for name in SETS for p in pictured([q for q in probes if q.set == name])]
    prompts = [p.prompt for p in probes]
    seeds = [settings.first_seed + i for i in range(len(probes))]
    pipe = load_pipeline(**base_of(config)).to(device_of(config.trainer.accelerator))
    sampler = sampler_of(config, settings.sampling_steps)
    before = generate(pipe, prompts, seeds, description="base images", cached=True, **sampler)
    load_unlearned(pipe, run / "unlearned.safetensors")
    after = generate(pipe, prompts, seeds, description="unlearned images", **sampler)
    result = {"concept": concept.name, "kind": concept.kind, "method": config.method.name}
    if judge:
        sides = {
            side: verdicts(concept, probes, judge.judge(images))
            for side, images in (("base", before), ("unlearned", after))
        }
        result |= summarise(probes, sides)
        write_images(run / "images.csv", probes, seeds, sides, result["excluded_prompts"])
    else:
        result |= {"excluded_prompts": [], "sets": {}}
    (run / "result.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    before_after(probes, before, after, run / "before_after.png")
    report(result, run)
    return result


def report(result: dict[str, Any], run: Path) -> None:
    """Print the table, what was left out of it, and the paths of the files."""
    if result["sets"]:
        print(table(result))
    else:
        print("not judged: no judge knows what this model draws; before_after.png shows it")
    if excluded := result["excluded_prompts"]:
        print(
            f"{len(excluded)} target prompts left out, since the base model does not obey them "
            f"(all in result.json): {', '.join(excluded[:3])}"
        )
    for name in ("before_after.png", "unlearned.safetensors", "result.json"):
        print(run / name)
