"""Describe what a run would do."""

from __future__ import annotations

from unlearn.concepts.prompts import evaluation_prompts, training_pairs
from unlearn.config.run_config import RunConfig
from unlearn.training.run_dir import Progress


def describe_plan(config: RunConfig, progress: Progress) -> str:
    """Return the plan of a run as text, a fact each line; nothing is loaded, drawn or written."""
    concept, data = config.trained, config.data
    pairs = ", ".join(f"{t} to {a or 'no style'}" for t, a in concept.anchors.items())
    seeds = config.prompt_sets.images_per_prompt
    probes = sum(len(evaluation_prompts(part)) for part in config.concept.members)
    begin = "begins anew"
    if progress.finished:
        begin = "is finished already"
    elif progress.begun:
        begin = f"goes on after step {progress.step}"
    loggers = ", ".join(["metrics.csv", *config.loggers])
    facts = {
        "forget": f"{concept.name} ({concept.kind}): {pairs}",
        "model": f"{config.base.name}, {config.precision}, on {config.accelerator}",
        "method": f"{config.method}, recipe {config.recipe}",
        "steps": f"{config.steps} of {config.batch_size} samples a device, seed {config.seed}",
        "train on": f"{len(training_pairs(concept))} prompt pairs; {data.images} anchor images, "
        f"{data.relearn_images} relearn images",
        "evaluate": f"{probes} prompts, {seeds} images each, base and unlearned",
        "log": loggers,
        "run_dir": f"{config.folder}: {begin}",
    }
    width = max(map(len, facts))
    return "\n".join(f"{name:<{width}}  {fact}" for name, fact in facts.items())
