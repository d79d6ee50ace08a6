"""Check a composed configuration before any work."""

from __future__ import annotations

import inspect
from dataclasses import asdict, make_dataclass
from importlib.util import find_spec
from typing import Any, get_type_hints

from omegaconf import MISSING, DictConfig, OmegaConf

from unlearn.concepts.concept import Concept
from unlearn.concepts.prompts import check_prompts
from unlearn.config.after import record_earlier_concepts
from unlearn.config.base_model import base_model_name, resolve_precision
from unlearn.config.concepts import build_run_concept
from unlearn.config.recipes import find_recipe
from unlearn.config.schema import (
    LOGGERS,
    MODES,
    SECTIONS,
    DataConfig,
    EvaluationConfig,
    LoggerConfig,
    ModelConfig,
    RunConfig,
)
from unlearn.config.sections import check_keys, parse_section, to_container
from unlearn.config.trainer import check_trainer
from unlearn.methods.registry import METHODS
from unlearn.utils.checks import check_choice, check_number
from unlearn.utils.credentials import check_secrets


def check_config(config: DictConfig) -> Concept:
    """Refuse what a run could not do, before any work; returns the concept that it trains on.

    The sections of `config` become what their schemas make of them: "8" an 8, where an int belongs.

    Raises:
        ValueError: names the key, the value and what is allowed.
    """

    check_keys(config, [*SECTIONS, *RunConfig.__annotations__])
    concept = build_run_concept(config, own=True)
    check_choice("method.name", config.method.name, list(METHODS))
    method = METHODS[config.method.name]
    if OmegaConf.is_interpolation(config, "steps"):
        find_recipe(config.model.recipes, config.method.recipe)
    model = parse_section(config.model, "model", ModelConfig)
    data = parse_section(config.data, "data", DataConfig)
    check_evaluation(config)
    logger = parse_section(config.logger, "logger", LoggerConfig)
    run = parse_section({k: config[k] for k in RunConfig.__annotations__}, "", RunConfig)
    options: Any = parse_section(config.method, "method", options_schema(method))
    check_choice("logger.name", logger.name, LOGGERS)
    check_choice("logger.mode", logger.mode, MODES)
    if logger.name == "tensorboard" and find_spec("tensorboard") is None:
        raise ValueError("logger.name='tensorboard': the extra `tensorboard` is not installed")
    for key, value, least in (
        ("seed", run.seed, 0),
        ("batch_size", run.batch_size, 1),
        ("checkpoint_every", run.checkpoint_every, 1),
        ("keep_every", run.keep_every, 0),
        ("data.images", data.images, max(2, len(concept.each))),
        ("data.relearn_images", data.relearn_images, 0),
        ("data.num_inference_steps", data.num_inference_steps, 1),
        ("logger.images_every", logger.images_every, 0),
        ("sampling_batch_size", run.sampling_batch_size, 1),
    ):
        if value is not None and value < least:
            raise ValueError(f"{key}={value}: at least {least} is needed")
    method.check_options(asdict(options))
    check_number("model.guidance_scale", model.guidance_scale, at_least=0)
    if not run.run_dir.strip():
        raise ValueError(f"run_dir={run.run_dir!r}: a folder's name is needed")
    typed = {"model": model, "data": data, "logger": logger}
    sections = {k: asdict(v) for k, v in {**typed, "method": options}.items()}
    for key, value in {**sections, **asdict(run)}.items():
        config[key] = value
    method.check_run(config)
    resolve_precision(config)
    check_trainer(config)
    check_secrets(to_container(config))
    if run.after is not None:
        record_earlier_concepts(config, base_model_name(config))
    check_prompts(build_run_concept(config))
    return concept


def check_evaluation(config: DictConfig) -> None:
    """Refuse a section `evaluation` that is not of the four prompt sets; it becomes typed.

    Raises:
        ValueError: names the key, the value and what is allowed.
    """
    if (protocol := config.evaluation.get("name", "prompt_sets")) != "prompt_sets":
        raise ValueError(
            f"evaluation={protocol}: a run ends with the four prompt sets (prompt_sets); "
            f"`unlearn evaluate RUN_DIR evaluation={protocol}` runs a published protocol"
        )
    evaluation = parse_section(config.evaluation, "evaluation", EvaluationConfig)
    for key, least in (("images_per_prompt", 1), ("num_inference_steps", 1), ("first_seed", 0)):
        if (value := getattr(evaluation, key)) < least:
            raise ValueError(f"evaluation.{key}={value}: at least {least} is needed")
    config.evaluation = asdict(evaluation)


def options_schema(method: Any) -> type:
    """A dataclass of a method's options: its constructors' keyword arguments that it takes."""
    fields: dict[str, tuple[type, Any]] = {"name": (str, MISSING), "recipe": (str, MISSING)}
    for part in reversed(method.__mro__):
        if "__init__" in vars(part) and part.__module__.startswith("unlearn.methods.registry"):
            hints = get_type_hints(part.__init__)  # type: ignore[misc]
            for name, parameter in inspect.signature(part.__init__).parameters.items():  # type: ignore[misc]
                if parameter.kind is parameter.KEYWORD_ONLY:
                    fields[name] = hints[name], parameter.default
    for name in method.LACKS:
        del fields[name]
    return make_dataclass("Options", [(k, *v) for k, v in fields.items()])
