"""Evaluate a model on the four prompt sets, beside its base model on the same prompts and noise."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from torch import Tensor

from unlearn.concepts.concept import Concept
from unlearn.concepts.prompts import SET_NAMES
from unlearn.config.run_config import ModelConfig
from unlearn.evaluation.clip import ClipScorer
from unlearn.evaluation.clip_judge import ClipJudge, candidate_names
from unlearn.evaluation.fidelity import root_mean_square_error
from unlearn.evaluation.goals import describe_outcome
from unlearn.evaluation.judge import Judge
from unlearn.evaluation.pictures import before_after, pictured_rows
from unlearn.evaluation.summary import (
    FlagsByModel,
    ImageRequest,
    concat_sides,
    image_requests,
    judge_sides,
    summarise_all,
    write_images,
)
from unlearn.evaluation.table import terminal_table
from unlearn.generation.image_cache import pipeline_fingerprint
from unlearn.generation.sampling import generate
from unlearn.models.frozen_layers import store_in_bf16
from unlearn.models.pipeline import get_denoiser
from unlearn.utils.atomic import write_text
from unlearn.utils.hashing import file_sha256
from unlearn.utils.paths import EMBEDDED
from unlearn.weights.importing import load_weights


def load_judge(config: ModelConfig, concept: Concept) -> Judge | ClipJudge | None:
    """Load the judge that `evaluation.judge` names: a folder's, or "clip"; return None for "none".

    The default (null) is the embedded model's judge where the vocabulary is known, else "clip".

    Raises:
        ValueError: the folder holds no judge, or the CLIP of `evaluation.clip` cannot be loaded.
    """
    default = "clip" if config.vocabulary is None else str(EMBEDDED / "judges" / "judge")
    chosen = config.prompt_sets.judge or default
    if chosen == "none":
        return None
    if chosen != "clip":
        return Judge.load(Path(chosen))
    try:
        clip = ClipScorer.load(config.prompt_sets.clip, config.device)
    except ValueError as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise ValueError(f"{reason}; evaluation.judge=none draws pictures alone") from error
    return ClipJudge(clip, *candidate_names(concept))


def pictured_requests(requests: list[ImageRequest]) -> list[ImageRequest]:
    """Return the requests of the images that before_after.png shows, in its order."""
    by_set = ([r for r in requests if r.probe.set == name] for name in SET_NAMES)
    return [request for own in by_set for request in pictured_rows(own)]


def draw_side(
    config: ModelConfig,
    pipe: DiffusionPipeline,
    requests: list[ImageRequest],
    side: str,
    installed: str = "",
) -> Tensor:
    """Draw the images of one of the two models, uint8 (N, 3, H, W).

    Args:
        config: of the model that is evaluated.
        pipe: the model that draws.
        requests: the N images.
        side: "base" or "unlearned", for the progress bar.
        installed: what changed the pipeline, see `ImageCache`.
    """
    pipe.to(config.device)
    fingerprint = pipeline_fingerprint(pipe)
    if config.precision == "bf16-mixed":
        store_in_bf16(get_denoiser(pipe), ())
    prompts, seeds = [r.probe.prompt for r in requests], [r.seed for r in requests]
    sampler = config.sampler(config.prompt_sets.num_inference_steps)
    return generate(
        pipe, prompts, seeds, sampler,
        description=f"{side} images", cached=fingerprint, installed=installed,
    )  # fmt: skip


def draw_both(
    config: ModelConfig, weights: Path, requests: list[ImageRequest]
) -> tuple[Tensor, Tensor]:
    """Draw the images of the base model and of the unlearned one, each uint8 (N, 3, H, W).

    Raises:
        ValueError: the weights cannot be loaded.
    """
    base, targets = config.base.load(), config.concept.targets
    scheduler = base.scheduler
    pipe = load_weights(base, weights, targets, config.base.name)
    pipe.scheduler = scheduler  # a diffusers folder may bring another one
    after = draw_side(config, pipe, requests, "unlearned", f"{file_sha256(weights)} {targets}")
    del base, pipe  # one model at a time
    return draw_side(config, config.base.load(), requests, "base"), after


def evaluate(config: ModelConfig, external_weights: Path | None = None) -> dict[str, Any]:
    """Draw and judge the images of both models, write the results, and print the table.

    The files are `result.json`, `images.csv` and `before_after.png`. Without a judge, only the
    images of the picture are drawn, and the result has no `sets`. Concepts that earlier runs forgot
    are evaluated too.

    Args:
        config: the configuration of a run, or of external weights.
        external_weights: weights made outside this package, see `load_weights`.

    Returns:
        What `result.json` holds.

    Raises:
        ValueError: the judge or the weights cannot be loaded; raised before any image is drawn.
    """
    concept, settings, folder = config.concept, config.prompt_sets, config.folder
    judge = load_judge(config, concept)
    requests = image_requests(concept, settings.images_per_prompt, settings.first_seed)
    if judge is None:
        requests = pictured_requests(requests)
    weights = external_weights or config.weights
    before, after = draw_both(config, weights, requests)
    result: dict[str, Any] = {
        "concept": concept.name,
        "kind": concept.kind,
        "method": config.method,
    }
    if external_weights:
        result["weights"] = str(external_weights)
        folder.mkdir(parents=True, exist_ok=True)
    result["settings"] = {
        **asdict(settings),
        "sampling_batch_size": config.sampling_batch_size,
        "precision": config.precision,
        "device": config.device,
    }
    flags: FlagsByModel = {"base": {}, "unlearned": {}}
    moved = root_mean_square_error(before, after)
    if judge:
        both = {"base": judge.judge(before), "unlearned": judge.judge(after)}
        sides = judge_sides(requests, both, moved)
        result |= summarise_all(requests, sides, config.earlier_names)
        if judge.note:
            result["judge"] = judge.note
        flags = concat_sides(sides.values())
    else:
        result |= {"excluded_prompts": [], "sets": {}}
    write_images(folder / "images.csv", requests, flags, result["excluded_prompts"], moved)
    probes, seeds = [r.probe for r in requests], [r.seed for r in requests]
    before_after(probes, seeds, before, after, folder / "before_after.png")
    result["sha256"] = {n: file_sha256(folder / n) for n in ("images.csv", "before_after.png")}
    # last, since it marks a finished evaluation
    write_text(folder / "result.json", json.dumps(result, indent=2) + "\n")
    print_result(result, folder, weights)
    return result


def print_result(result: dict[str, Any], run: Path, weights: Path) -> None:
    """Print the table, the prompts left out, the files, the verdict, and the next command."""
    if result["sets"]:
        print(terminal_table(result))
    else:
        print("not judged, by evaluation.judge=none; before_after.png shows what the model draws")
    if excluded := result["excluded_prompts"]:
        print(
            f"{len(excluded)} target prompts left out, since the base model does not obey them "
            f"(all in result.json): {', '.join(excluded[:3])}"
        )
    for path in (run / "before_after.png", weights, run / "result.json"):
        print(path)
    print(f"{describe_outcome(result)['head']}. See more: unlearn report {run}")
