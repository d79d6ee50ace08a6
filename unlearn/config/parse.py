"""Check a composed configuration, and build the typed object that a run is made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from unlearn.concepts.prompts import check_prompts
from unlearn.config.after import read_earlier_concepts
from unlearn.config.base_model import BaseModel, resolve_precision
from unlearn.config.concepts import build_concepts, parse_concept, trained_sections
from unlearn.config.plugins import TargetEntries, parse_callbacks, parse_loggers, shows_images
from unlearn.config.recipes import find_recipe
from unlearn.config.run_config import RunConfig
from unlearn.config.saved import earlier_run_dir
from unlearn.config.schema import PROMPT_SETS, EvaluationOptions, ModelOptions, RunOptions
from unlearn.config.sections import check_keys, parse_section, to_container
from unlearn.config.trainer import check_sweep, parse_trainer
from unlearn.data.training_data import DataOptions
from unlearn.methods.registry import find_method
from unlearn.utils.checks import check_number
from unlearn.utils.credentials import check_secrets

SECTIONS = (
    "concept", "anchor", "model", "method", "data", "trainer", "logger", "callbacks", "evaluation"
)  # fmt: skip
IMAGES_EVERY = 250  # steps between pictures, with a logger that shows images
NOT_SAVED = ("resume", "dry_run")  # keys that concern one call, not the run


def parse_config(config: DictConfig) -> RunConfig:
    """Return the run that a composed configuration describes; nothing is loaded or written.

    Every value is converted to the type that its schema declares: "8" becomes the integer 8.

    Raises:
        ValueError: a value is not allowed; names the key, the value and what is allowed.
    """
    top = [each.name for each in fields(RunOptions)]
    check_keys(config, [*SECTIONS, *top])
    sections = trained_sections(config)
    concepts = tuple(parse_concept(own) for own in sections)
    vocabulary = config.model.get("vocabulary")
    trained = build_concepts(concepts, vocabulary)
    method = find_method(config.method.name)
    if OmegaConf.is_interpolation(config, "steps"):  # with steps=N a method may need none
        find_recipe(config.model.recipes, config.method.recipe)
    saved: dict[str, Any] = to_container(config)
    model = parse_section(saved["model"], "model", ModelOptions)
    data = parse_section(saved["data"], "data", DataOptions)
    evaluation = parse_prompt_sets(saved["evaluation"])
    run = parse_section({key: saved[key] for key in top}, "", RunOptions)
    own = {k: v for k, v in saved["method"].items() if k not in ("name", "recipe")}
    options: Any = parse_section(own, "method", method.Options)
    check_number("data.images", data.images, at_least=max(2, len(trained.members)))
    if not run.run_dir.strip():
        raise ValueError(f"run_dir={run.run_dir!r}: a folder's name is needed")
    trainer, more = parse_trainer(saved["trainer"])
    check_sweep(asdict(trainer))
    loggers = parse_loggers(saved["logger"] or {})
    callbacks = parse_callbacks(saved["callbacks"] or {})
    base = BaseModel.of(model)
    saved |= {"model": asdict(model), "data": asdict(data), "evaluation": asdict(evaluation)}
    saved |= {"method": {**{k: config.method[k] for k in ("name", "recipe")}, **asdict(options)}}
    saved |= asdict(run) | {"trainer": {**asdict(trainer), **more}}
    check_secrets(saved)
    earlier: list[Any] = []
    if run.after is not None:
        earlier = read_earlier_concepts(run.after, base.name, Path(run.run_dir), config.method.name)
        saved["earlier"] = earlier
    result = RunConfig(
        sections=concepts,
        earlier=tuple(parse_concept(own) for own in earlier),
        vocabulary=model.vocabulary,
        base=base,
        guidance_scale=model.guidance_scale,
        sampling_batch_size=run.sampling_batch_size,
        precision=resolve_precision(trainer.precision, trainer.accelerator),
        accelerator=trainer.accelerator,
        evaluation=evaluation,
        method=config.method.name,
        folder=Path(run.run_dir),
        saved={key: value for key, value in saved.items() if key not in NOT_SAVED},
        recipe=config.method.recipe,
        trained=trained,
        options=options,
        data=data,
        trainer=trainer,
        lightning_options=more,
        loggers=loggers,
        callbacks=callbacks,
        seed=run.seed,
        steps=run.steps,
        batch_size=run.batch_size,
        gradient_checkpointing=run.gradient_checkpointing,
        checkpoint_every=run.checkpoint_every,
        keep_every=run.keep_every,
        log_images_every=picture_interval(run, loggers),
        resume=run.resume,
        dry_run=run.dry_run,
        after=None if run.after is None else earlier_run_dir(run.after),
    )
    method.check_plan(options, result.plan)
    check_prompts(result.concept)
    return result


def picture_interval(run: RunOptions, loggers: TargetEntries) -> int:
    """Return the steps between pictures of what the model draws; 0: none is drawn."""
    if run.log_images_every is not None:
        return run.log_images_every
    return IMAGES_EVERY if any(map(shows_images, loggers.values())) else 0


def parse_prompt_sets(section: Mapping[str, Any]) -> EvaluationOptions:
    """Return the options of the four prompt sets, the evaluation that a run ends with.

    Args:
        section: `evaluation`.

    Raises:
        ValueError: a published protocol is chosen, or a value is not allowed.
    """
    if (protocol := section.get("name", PROMPT_SETS)) != PROMPT_SETS:
        raise ValueError(
            f"evaluation={protocol}: a run ends with the four prompt sets ({PROMPT_SETS}); "
            f"`unlearn evaluate RUN_DIR evaluation={protocol}` runs a published protocol"
        )
    return parse_section(section, "evaluation", EvaluationOptions)
