"""Evaluate a model on the four prompt sets, beside its base model on the same prompts and noise."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import DiffusionPipeline
from omegaconf import DictConfig
from torch import Tensor

from unlearn.backbone import denoiser, device_of, load_pipeline, store_in_bf16
from unlearn.cache import digest, fingerprint
from unlearn.concepts import Concept
from unlearn.config import base_of, concept_of, sampler_of
from unlearn.evaluation.clip import ClipScorer
from unlearn.evaluation.clip_judge import ClipJudge, names_of
from unlearn.evaluation.judge import Judge, Verdict
from unlearn.evaluation.metrics import Rate, rate, rate_over
from unlearn.evaluation.pictures import before_after, pictured
from unlearn.evaluation.score import TARGET_SETS
from unlearn.files import whole, write_text
from unlearn.generate import generate
from unlearn.importing import load_weights
from unlearn.prompts import SETS, Probe, numbered_probes
from unlearn.sections import plain
from unlearn.several import earlier_of
from unlearn.vocabulary import EMBEDDED

OBEYED = 0.8  # a prompt counts only if the base draws its subject in this share of seeds


def verdicts(concept: Concept, probes: list[Probe], verdict: Verdict) -> dict[str, Tensor]:
    """What each image shows, as flags (N,); a broken image shows nothing.

    Keys: "object" and "style" (the prompt's), "right" (what its set tests: the style for a style
    concept, else the object), "anchor" (for a style, the prompt's object) and, where the judge
    can tell, "broken".
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


def disobeyed(probes: list[Probe], right: Tensor) -> list[str]:
    """The target prompts that the base model does not obey."""
    hits: dict[str, list[bool]] = {}
    for probe, hit in zip(probes, right.tolist(), strict=True):
        if probe.set in TARGET_SETS:
            hits.setdefault(probe.prompt, []).append(hit)
    return sorted(p for p, h in hits.items() if sum(h) / len(h) < OBEYED)


SHOWN = ("right", "anchor", "retention", "object", "style", "broken")  # of the table
FLAGS = ("object", "style", "right", "anchor", "broken")
Sides = dict[str, dict[str, Tensor]]  # "base" and "unlearned": what `verdicts` gives


def share(flags: Tensor | None, among: Tensor, probes: list[Probe]) -> dict[str, Any]:
    """The rate of flags (N,) among the chosen images (N,); of none where there are no flags."""
    if flags is None:
        return rate(0, 0)._asdict()
    prompts = [p.prompt for p, chosen in zip(probes, among.tolist(), strict=True) if chosen]
    return rate_over(flags[among].tolist(), prompts)._asdict()


def summarise(probes: list[Probe], sides: Sides) -> dict[str, Any]:
    """All rates of the four sets, of the base and of the unlearned model.

    What the judge cannot tell is a rate of no images.
    """
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
                side: share(flags.get("right" if metric == "retention" else metric), among, probes)
                for side, flags in sides.items()
            }
            for metric, among in metrics.items()
        }
    return {"excluded_prompts": excluded, "sets": sets}


class Asked(NamedTuple):
    """One image to draw: the concept that it tests, its prompt and its seed."""

    concept: Concept
    probe: Probe
    seed: int


def asked_of(concept: Concept, seeds: int, first_seed: int) -> list[Asked]:
    """The images of a concept's four sets, or of those of each of several, one after another."""
    return [
        Asked(part, probe, first_seed + number * seeds + i)
        for part in concept.each
        for number, probe in numbered_probes(part)
        for i in range(seeds)
    ]


def judge_sides(asked: list[Asked], verdict_of: dict[str, Verdict]) -> dict[str, Sides]:
    """What the images of each concept show, by the concept's name, on both sides."""
    sides: dict[str, Sides] = {}
    for name, group in groupby(enumerate(asked), key=lambda pair: pair[1].concept.name):
        numbers, own = zip(*group, strict=True)
        chosen = slice(numbers[0], numbers[-1] + 1)
        probes = [a.probe for a in own]
        sides[name] = {
            side: verdicts(own[0].concept, probes, verdict.of(chosen))
            for side, verdict in verdict_of.items()
        }
    return sides


def together(sides: Iterable[Sides]) -> Sides:
    """The flags of several concepts' images, one after another."""
    parts = list(sides)
    return {
        side: {key: torch.cat([part[side][key] for part in parts]) for key in flags}
        for side, flags in parts[0].items()
    }


def summarise_all(asked: list[Asked], sides: dict[str, Sides], earlier: set[str]) -> dict[str, Any]:
    """`summarise` of all images; where there are several concepts, under `concepts` of each too.

    Args:
        asked: the images.
        sides: what `judge_sides` gives.
        earlier: names of the concepts that were forgotten before the run.
    """
    result = summarise([a.probe for a in asked], together(sides.values()))
    if len(sides) == 1:
        return result
    concepts = {}
    for name, own in sides.items():
        probes = [a.probe for a in asked if a.concept.name == name]
        kind = next(a.concept.kind for a in asked if a.concept.name == name)
        concepts[name] = {"kind": kind, "earlier": name in earlier, **summarise(probes, own)}
    return {**result, "concepts": concepts}


def write_images(path: Path, asked: list[Asked], sides: Sides, excluded: list[str]) -> None:
    """One row an image pair: set, prompt, seed, whether it counts, and both sides' flags.

    Of several concepts, the concept too. A cell is empty where the judge cannot tell.
    """
    unknown = [""] * len(asked)
    several = len({a.concept.name for a in asked}) > 1
    flags = {
        f"{side}_{key}": f[key].int().tolist() if key in f else unknown
        for side, f in sides.items()
        for key in FLAGS
    }
    with whole(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*["concept"] * several, "set", "prompt", "seed", "counts", *flags])
        for (concept, probe, seed), *row in zip(asked, *flags.values(), strict=True):
            counts = int(probe.prompt not in excluded)
            name = [concept.name] * several
            writer.writerow([*name, probe.set, probe.prompt, seed, counts, *row])


def table(result: dict[str, Any]) -> str:
    """The four sets as a Markdown table; each cell is base → unlearned [95 % interval].

    Of several concepts, the sets of each and of all. A cell is empty where nothing was measured;
    what there is to say of the judge stands below.
    """
    concepts = result.get("concepts", {})
    head = [*["concept"] * bool(concepts), "set", "n", *SHOWN]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, own in concepts.items():
        label = f"{name}, before" if own["earlier"] else name
        lines += [f"| {label} {line}" for line in table_lines(own["sets"])]
    lines += [f"| all {line}" if concepts else line for line in table_lines(result["sets"])]
    if "judge" in result:
        lines += ["", result["judge"]]
    return "\n".join(lines)


def table_lines(sets: dict[str, Any]) -> list[str]:
    """One line of the table a set."""
    lines = []
    for name, row in sets.items():
        cells = []
        for column in SHOWN:
            pair = {k: Rate(**v) for k, v in row[column].items()} if column in row else {}
            if not pair or not pair["base"].n:
                cells.append("")
            elif column == "retention":
                cells.append(str(pair["unlearned"]))
            else:
                cells.append(f"{pair['base'].value:.0%} → {pair['unlearned']}")
        lines.append(f"| {name} | {row['right']['base']['n']} | " + " | ".join(cells) + " |")
    return lines


def load_judge(config: DictConfig, concept: Concept) -> Judge | ClipJudge | None:
    """The judge of `evaluation.judge`: a folder's, "clip", or for "none" None.

    null: the embedded model's where the vocabulary is known, else "clip".

    Raises:
        ValueError: the folder holds no judge, or the CLIP of `evaluation.clip` cannot be loaded.
    """
    default = "clip" if config.model.vocabulary is None else str(EMBEDDED / "judges" / "judge")
    chosen = config.evaluation.judge or default
    if chosen == "none":
        return None
    if chosen != "clip":
        return Judge.load(Path(chosen))
    try:
        clip = ClipScorer.load(config.evaluation.clip, device_of(config.trainer.accelerator))
    except ValueError as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise ValueError(f"{reason}; evaluation.judge=none draws pictures alone") from error
    return ClipJudge(clip, *names_of(concept))


def evaluate(config: DictConfig, run: Path, foreign: Path | None = None) -> dict[str, Any]:
    """Draw, judge and compare; write what a run directory lists of results, and print the table.

    That is `result.json`, `images.csv` and `before_after.png`; without a judge, only what the
    picture shows, and a result without `sets`. What was forgotten before the run is evaluated too.

    Args:
        config: a run's, or of weights from elsewhere conf/evaluate.yaml's.
        run: the folder of the results, and of the run's weights.
        foreign: weights from elsewhere, see `load_weights`.

    Raises:
        ValueError: the judge or the weights cannot be loaded; before any image is drawn.
    """
    concept = concept_of(config)
    settings = config.evaluation
    judge = load_judge(config, concept)
    asked = asked_of(concept, settings.seeds, settings.first_seed)
    if judge is None:
        asked = [a for name in SETS for a in pictured([b for b in asked if b.probe.set == name])]
    probes, seeds = [a.probe for a in asked], [a.seed for a in asked]
    prompts = [p.prompt for p in probes]
    weights = foreign or run / "unlearned.safetensors"
    device = device_of(config.trainer.accelerator)
    sampler = sampler_of(config, settings.sampling_steps)

    def look(pipe: DiffusionPipeline, side: str, installed: str = "") -> Tensor:
        """The images that one of the two models draws."""
        pipe.to(device)
        how = {**sampler, "cached": fingerprint(pipe), "installed": installed}
        if sampler["precision"] == "bf16-mixed":
            store_in_bf16(denoiser(pipe), ())
        return generate(pipe, prompts, seeds, description=f"{side} images", **how)

    base = load_pipeline(**base_of(config))
    scheduler = base.scheduler
    pipe = load_weights(base, weights, concept.targets)
    pipe.scheduler = scheduler  # a whole pipeline's own would not be the base model's
    after = look(pipe, "unlearned", f"{digest(weights)} {concept.targets}")
    del base, pipe
    before = look(load_pipeline(**base_of(config)), "base")
    method = config.get("method", {}).get("name")
    result = {"concept": concept.name, "kind": concept.kind, "method": method}
    if foreign:
        result["weights"] = str(foreign)
        run.mkdir(parents=True, exist_ok=True)
    how = {"precision": sampler["precision"], "device": device}
    result["settings"] = {**plain(settings), "drawing_batch": sampler["batch_size"], **how}
    flags: Sides = {"base": {}, "unlearned": {}}
    if judge:
        both = {"base": judge.judge(before), "unlearned": judge.judge(after)}
        sides = judge_sides(asked, both)
        earlier = {s["concept"]["name"] for s in earlier_of(config)}
        result |= summarise_all(asked, sides, earlier)
        if judge.note:
            result["judge"] = judge.note
        flags = together(sides.values())
    else:
        result |= {"excluded_prompts": [], "sets": {}}
    write_images(run / "images.csv", asked, flags, result["excluded_prompts"])
    before_after(probes, before, after, run / "before_after.png")
    result["sha256"] = {n: digest(run / n) for n in ("images.csv", "before_after.png")}
    write_text(run / "result.json", json.dumps(result, indent=2) + "\n")  # last: all is there
    report(result, run, weights)
    return result


def report(result: dict[str, Any], run: Path, weights: Path) -> None:
    """Print the table, what was left out of it, and the paths of the files."""
    if result["sets"]:
        print(table(result))
    else:
        print("not judged, by evaluation.judge=none; before_after.png shows what the model draws")
    if excluded := result["excluded_prompts"]:
        print(
            f"{len(excluded)} target prompts left out, since the base model does not obey them "
            f"(all in result.json): {', '.join(excluded[:3])}"
        )
    for path in (run / "before_after.png", weights, run / "result.json"):
        print(path)
