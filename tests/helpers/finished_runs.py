"""Finished runs of made-up images and verdicts, written by the functions that write real ones."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import torch
from omegaconf import OmegaConf

from unlearn.concepts.prompts import SET_NAMES
from unlearn.config.saved import parse_model_config, read_config
from unlearn.evaluation.judge import Verdict
from unlearn.evaluation.pictures import before_after, pictured_rows
from unlearn.evaluation.score import TARGET_SETS
from unlearn.evaluation.summary import (
    FlagsByModel,
    concat_sides,
    image_requests,
    judge_sides,
    summarise_all,
    write_images,
)
from unlearn.training.environment import write_environment
from unlearn.training.metrics_file import MetricsFile

HOSTILE = "\"'><script>hacked = 1</script><img src=x onerror='hacked=2'>{{ 7 * 7 }}</style>&amp;"


def make_finished(
    folder: Path, trained: Path, *, judged: bool = True, prompt: str = "", **concept: str
) -> Path:
    """A run that was trained, finished: it forgets the panda and breaks one related image.

    Args:
        folder: the run directory.
        trained: another one, which lacks what the evaluation writes.
        judged: with rates.
        prompt: takes the place of every prompt, with a number.
        concept: fields of the concept, changed afterwards.
    """
    shutil.copytree(trained, folder)
    config = read_config(folder / "config.yaml")
    run = parse_model_config(config, folder)
    asked = image_requests(run.concept, 1, 7)
    if not judged:
        asked = [
            a
            for name in SET_NAMES
            for a in pictured_rows([b for b in asked if b.probe.set == name])
        ]
    probes, styles = [a.probe for a in asked], [a.probe.style or "flat" for a in asked]
    objects = [p.object for p in probes]
    forgotten = ["bear" if p.set in TARGET_SETS else p.object for p in probes]
    whole = torch.zeros(len(asked), dtype=torch.bool)
    broken = whole.clone()
    broken[[p.set for p in probes].index("related")] = True
    verdicts = {
        "base": Verdict(objects, styles, whole),
        "unlearned": Verdict(forgotten, styles, broken),
    }
    moved = torch.arange(len(asked)) / len(asked)
    sides = judge_sides(asked, verdicts, moved)
    flags: FlagsByModel = concat_sides(sides.values()) if judged else {"base": {}, "unlearned": {}}
    rates = summarise_all(asked, sides, set()) if judged else {"excluded_prompts": [], "sets": {}}
    config.concept = {**config.concept, **concept}
    named = {"concept": config.concept.name, "kind": config.concept.kind, "method": "doco"}
    named |= {"settings": {}, "sha256": {}}
    if prompt:
        asked = [
            a._replace(probe=replace(a.probe, prompt=f"{prompt} {i}")) for i, a in enumerate(asked)
        ]
    write_images(folder / "images.csv", asked, flags, rates["excluded_prompts"], moved)
    colours = torch.randint(256, (2, len(asked), 3, 1, 1), generator=torch.manual_seed(0))
    images = colours.to(torch.uint8).expand(-1, -1, -1, 16, 16)
    seeds = [a.seed for a in asked]
    before_after([a.probe for a in asked], seeds, *images, folder / "before_after.png")
    (folder / "result.json").write_text(json.dumps(named | rates))
    OmegaConf.save(config, folder / "config.yaml")
    write_environment(run)
    metrics = MetricsFile(folder / "metrics.csv")
    for step in range(3):
        metrics.log_metrics({"loss/unlearn": 1 / (step + 1), "surgery/cosine": -0.25}, step)
    return folder
