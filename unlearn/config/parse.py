"""Check a composed configuration, and build the typed object that a run is made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from unlearn.concepts.prompts import check_prompts
from unlearn.config.after import read_earlier_concepts
from unlearn.config.base_model import BaseModel, resolve_precision
from unlearn.config.concepts import build_concepts, parse_concept, trained_sections
from unlearn.config.plugins import TargetEntries, parse_callbacks, parse_loggers, shows_images
from unlearn.config.recipes import find_recipe
from unlearn.config.run_config import RunConfig
from unlearn.config.saved import earlier_run_dir
from unlearn.config.schema import (
    PROMPT_SETS,
    EvaluationOptions,
    ModelOptions,
    RunOptions,
    TrainerOptions,
)
from unlearn.config.sections import check_keys, parse_section, to_container
from unlearn.config.trainer import check_sweep, parse_trainer
from unlearn.data.training_data import DataOptions
from unlearn.methods.base import UnlearningModule
from unlearn.methods.registry import find_method
from unlearn.utils.checks import check_number
from unlearn.utils.credentials import check_secrets

SECTIONS = (
    "concept", "anchor", "model", "method", "data", "trainer", "logger", "callbacks", "evaluation"
)  # fmt: skip
IMAGES_EVERY = 250  # steps between pictures, with a logger that shows images
NOT_SAVED = ("resume", "dry_run")  # keys that concern one call, not the run
METHOD_NAMES = ("name", "recipe")  # of the section `method`, beside the options
TOP_KEYS = tuple(each.name for each in fields(RunOptions))


class ParsedSections(NamedTuple):
    """The sections of a run's configuration, each checked against its schema.

    Attributes:
        run: the keys at the top.
        model, data, evaluation, trainer: the sections of these names.
        lightning_options: further options of Lightning's Trainer.
        options: the method's.
        loggers, callbacks: by name, what `hydra.utils.instantiate` takes.
    """

    run: RunOptions
    model: ModelOptions
    data: DataOptions
    evaluation: EvaluationOptions
    trainer: TrainerOptions
    lightning_options: dict[str, Any]
    options: Any
    loggers: TargetEntries
    callbacks: TargetEntries


def parse_config(config: DictConfig) -> RunConfig:
    """Return the run that a composed configuration describes; nothing is loaded or written.

    Every value is converted to the type that its schema declares: "8" becomes the integer 8.

    Raises:
        ValueError: a value is not allowed; names the key, the value and what is allowed.
    """
    check_keys(config, [*SECTIONS, *TOP_KEYS])
    concepts = tuple(parse_concept(own) for own in trained_sections(config))
    trained = build_concepts(concepts, config.model.get("vocabulary"))
    method = find_method(config.method.name)
    if OmegaConf.is_interpolation(config, "steps"):  # with steps=N a method may need none
        find_recipe(config.model.recipes, config.method.recipe)
    given: dict[str, Any] = to_container(config)
    parsed = parse_sections(given, method)
    run, model, trainer = parsed.run, parsed.model, parsed.trainer
    check_number("data.images", parsed.data.images, at_least=max(2, len(trained.members)))
    saved = values_to_save(given, parsed)
    check_secrets(saved)
    base, run_dir = BaseModel.of(model), Path(run.run_dir)
    earlier: list[Any] = []
    if run.after is not None:
        earlier = read_earlier_concepts(run.after, base.name, run_dir, config.method.name)
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
        evaluation=parsed.evaluation,
        method=config.method.name,
        folder=run_dir,
        saved=saved,
        recipe=config.method.recipe,
        trained=trained,
        options=parsed.options,
        data=parsed.data,
        trainer=trainer,
        lightning_options=parsed.lightning_options,
        loggers=parsed.loggers,
        callbacks=parsed.callbacks,
        seed=run.seed,
        steps=run.steps,
        batch_size=run.batch_size,
        gradient_checkpointing=run.gradient_checkpointing,
        checkpoint_every=run.checkpoint_every,
        keep_every=run.keep_every,
        log_images_every=picture_interval(run, parsed.loggers),
        resume=run.resume,
        dry_run=run.dry_run,
        after=None if run.after is None else earlier_run_dir(run.after),
    )
    method.check_plan(parsed.options, result.plan)
    check_prompts(result.concept)
    return result


def parse_sections(given: Mapping[str, Any], method: type[UnlearningModule]) -> ParsedSections:
    """Return the sections of a configuration, checked.

    Args:
        given: the whole configuration.
        method: the chosen method.

    Raises:
        ValueError: a value is not allowed; names the key, the value and what is allowed.
    """
    model = parse_section(given["model"], "model", ModelOptions)
    data = parse_section(given["data"], "data", DataOptions)
    evaluation = parse_prompt_sets(given["evaluation"])
    run = parse_section({key: given[key] for key in TOP_KEYS}, "", RunOptions)
    own = {key: value for key, value in given["method"].items() if key not in METHOD_NAMES}
    options = parse_section(own, "method", method.Options)
    if not run.run_dir.strip():
        raise ValueError(f"run_dir={run.run_dir!r}: a folder's name is needed")
    trainer, lightning_options = parse_trainer(given["trainer"])
    check_sweep(asdict(trainer))
    loggers = parse_loggers(given["logger"] or {})
    callbacks = parse_callbacks(given["callbacks"] or {})
    return ParsedSections(
        run, model, data, evaluation, trainer, lightning_options, options, loggers, callbacks
    )


def values_to_save(given: Mapping[str, Any], parsed: ParsedSections) -> dict[str, Any]:
    """Return what config.yaml holds: the configuration with the values of the typed sections."""
    names = {key: given["method"][key] for key in METHOD_NAMES}
    values = {
        **given,
        **asdict(parsed.run),
        "model": asdict(parsed.model),
        "data": asdict(parsed.data),
        "evaluation": asdict(parsed.evaluation),
        "method": {**names, **asdict(parsed.options)},
        "trainer": {**asdict(parsed.trainer), **parsed.lightning_options},
    }
    return {key: value for key, value in values.items() if key not in NOT_SAVED}


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
