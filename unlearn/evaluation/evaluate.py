"""Evaluate a model on the four prompt sets, beside its base model on the same prompts and noise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from omegaconf import DictConfig
from torch import Tensor

from unlearn.concepts.concept import Concept
from unlearn.concepts.prompts import SETS
from unlearn.config.base_model import base_model_options, sampler_options
from unlearn.config.concepts import build_run_concept, earlier_sections
from unlearn.config.sections import to_container
from unlearn.evaluation.clip import ClipScorer
from unlearn.evaluation.clip_judge import ClipJudge, names_of
from unlearn.evaluation.judge import Judge
from unlearn.evaluation.pictures import before_after, pictured_rows
from unlearn.evaluation.summary import (
    Sides,
    concat_sides,
    image_requests,
    judge_sides,
    summarise_all,
    write_images,
)
from unlearn.evaluation.table import markdown_table
from unlearn.generation.image_cache import pipeline_fingerprint
from unlearn.generation.sampling import generate
from unlearn.models.frozen_layers import store_in_bf16
from unlearn.models.pipeline import denoiser, device_for, load_pipeline
from unlearn.utils.atomic import write_text
from unlearn.utils.hashing import file_sha256
from unlearn.utils.paths import EMBEDDED
from unlearn.weights.importing import load_weights


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
        clip = ClipScorer.load(config.evaluation.clip, device_for(config.trainer.accelerator))
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
    concept = build_run_concept(config)
    settings = config.evaluation
    judge = load_judge(config, concept)
    asked = image_requests(concept, settings.images_per_prompt, settings.first_seed)
    if judge is None:
        asked = [
            a for name in SETS for a in pictured_rows([b for b in asked if b.probe.set == name])
        ]
    probes, seeds = [a.probe for a in asked], [a.seed for a in asked]
    prompts = [p.prompt for p in probes]
    weights = foreign or run / "unlearned.safetensors"
    device = device_for(config.trainer.accelerator)
    sampler = sampler_options(config, settings.num_inference_steps)

    def look(pipe: DiffusionPipeline, side: str, installed: str = "") -> Tensor:
        """The images that one of the two models draws."""
        pipe.to(device)
        how = {**sampler, "cached": pipeline_fingerprint(pipe), "installed": installed}
        if sampler["precision"] == "bf16-mixed":
            store_in_bf16(denoiser(pipe), ())
        return generate(pipe, prompts, seeds, description=f"{side} images", **how)

    base = load_pipeline(**base_model_options(config))
    scheduler = base.scheduler
    pipe = load_weights(base, weights, concept.targets)
    pipe.scheduler = scheduler  # a whole pipeline's own would not be the base model's
    after = look(pipe, "unlearned", f"{file_sha256(weights)} {concept.targets}")
    del base, pipe
    before = look(load_pipeline(**base_model_options(config)), "base")
    method = config.get("method", {}).get("name")
    result = {"concept": concept.name, "kind": concept.kind, "method": method}
    if foreign:
        result["weights"] = str(foreign)
        run.mkdir(parents=True, exist_ok=True)
    how = {"precision": sampler["precision"], "device": device}
    result["settings"] = {
        **to_container(settings),
        "sampling_batch_size": sampler["batch_size"],
        **how,
    }
    flags: Sides = {"base": {}, "unlearned": {}}
    if judge:
        both = {"base": judge.judge(before), "unlearned": judge.judge(after)}
        sides = judge_sides(asked, both)
        earlier = {s["concept"]["name"] for s in earlier_sections(config)}
        result |= summarise_all(asked, sides, earlier)
        if judge.note:
            result["judge"] = judge.note
        flags = concat_sides(sides.values())
    else:
        result |= {"excluded_prompts": [], "sets": {}}
    write_images(run / "images.csv", asked, flags, result["excluded_prompts"])
    before_after(probes, before, after, run / "before_after.png")
    result["sha256"] = {n: file_sha256(run / n) for n in ("images.csv", "before_after.png")}
    write_text(run / "result.json", json.dumps(result, indent=2) + "\n")  # last: all is there
    print_result(result, run, weights)
    return result


def print_result(result: dict[str, Any], run: Path, weights: Path) -> None:
    """Print the table, what was left out of it, and the paths of the files."""
    if result["sets"]:
        print(markdown_table(result))
    else:
        print("not judged, by evaluation.judge=none; before_after.png shows what the model draws")
    if excluded := result["excluded_prompts"]:
        print(
            f"{len(excluded)} target prompts left out, since the base model does not obey them "
            f"(all in result.json): {', '.join(excluded[:3])}"
        )
    for path in (run / "before_after.png", weights, run / "result.json"):
        print(path)
