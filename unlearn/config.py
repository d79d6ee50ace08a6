"""From a composed Hydra config to checked objects: what is not valid is refused before any work."""

from __future__ import annotations

import inspect
from dataclasses import asdict, dataclass, field, make_dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any, Optional, get_type_hints

import hydra
import torch
from omegaconf import MISSING, DictConfig, OmegaConf

from unlearn.cli import conf_dir, files_of, own_conf
from unlearn.concepts import Concept
from unlearn.credentials import check_secrets
from unlearn.hardware import check_trainer
from unlearn.names import check
from unlearn.overrides import said_plainly
from unlearn.prompts import check_prompts
from unlearn.sections import check_keys, check_number, plain, section
from unlearn.several import check_alike, concept_of, go_on, join_configs, listed

PRECISIONS = ("32-true", "bf16-mixed", "auto")
LOGGERS = ("csv", "wandb", "tensorboard")
MODES = ("online", "offline")  # of wandb
SECTIONS = ("concept", "anchor", "model", "method", "data", "trainer", "logger", "evaluation")


@dataclass
class ModelConfig:
    """The section `model`: see conf/model."""

    pretrained: str = MISSING
    vocabulary: Optional[str] = None  # noqa: UP045 - OmegaConf reads these annotations
    guidance: float = MISSING
    settings: dict[str, Any] = MISSING
    random_weights: bool = False
    width: float = 1.0
    image_size: Optional[int] = None  # noqa: UP045
    config: Optional[str] = None  # noqa: UP045


@dataclass
class DataConfig:
    """The section `data`: see conf/data."""

    images: int = MISSING
    relearn_images: int = MISSING
    sampling_steps: int = MISSING
    flip: bool = MISSING
    rescale: bool = MISSING


@dataclass
class EvaluationConfig:
    """The section `evaluation` of the four prompt sets: see conf/evaluation/emoji.yaml."""

    name: str = "emoji"
    seeds: int = MISSING
    first_seed: int = MISSING
    sampling_steps: int = MISSING
    judge: Optional[str] = None  # noqa: UP045
    clip: str = "openai/clip-vit-base-patch32"


@dataclass
class LoggerConfig:
    """The section `logger`: see conf/logger."""

    name: str = MISSING
    images_every: int = MISSING
    project: str = "unlearn"
    group: str = ""
    tags: list[str] = field(default_factory=list)
    mode: str = "online"


@dataclass
class RunConfig:
    """What stands at the top of conf/train.yaml."""

    seed: int = MISSING
    variant: str = MISSING
    steps: int = MISSING
    batch_size: int = MISSING
    checkpointing: bool = False
    drawing_batch: Optional[int] = None  # noqa: UP045
    checkpoint_every: int = MISSING
    keep_every: int = MISSING
    run_dir: str = MISSING
    resume: bool = True
    after: Optional[str] = None  # noqa: UP045


def check_config(config: DictConfig) -> Concept:
    """Refuse what a run could not do, before any work; returns the concept that it trains on.

    The sections of `config` become what their schemas make of them: "8" an 8, where an int belongs.

    Raises:
        ValueError: names the key, the value and what is allowed.
    """
    from unlearn.methods import METHODS

    check_keys(config, [*SECTIONS, *RunConfig.__annotations__])
    concept = concept_of(config, own=True)
    check("method.name", config.method.name, list(METHODS))
    method = METHODS[config.method.name]
    if OmegaConf.is_interpolation(config, "steps"):
        # where `steps` is given, a method may have no settings there
        check("variant", config.variant, list(config.model.settings))
    model = section(config.model, "model", ModelConfig)
    data = section(config.data, "data", DataConfig)
    check_evaluation(config)
    logger = section(config.logger, "logger", LoggerConfig)
    run = section({k: config[k] for k in RunConfig.__annotations__}, "", RunConfig)
    options: Any = section(config.method, "method", options_schema(method))
    check("logger.name", logger.name, LOGGERS)
    check("logger.mode", logger.mode, MODES)
    if logger.name == "tensorboard" and find_spec("tensorboard") is None:
        raise ValueError("logger.name='tensorboard': the extra `tensorboard` is not installed")
    for key, value, least in (
        ("seed", run.seed, 0),
        ("batch_size", run.batch_size, 1),
        ("checkpoint_every", run.checkpoint_every, 1),
        ("keep_every", run.keep_every, 0),
        ("data.images", data.images, max(2, len(concept.each))),
        ("data.relearn_images", data.relearn_images, 0),
        ("data.sampling_steps", data.sampling_steps, 1),
        ("logger.images_every", logger.images_every, 0),
        ("drawing_batch", run.drawing_batch, 1),
    ):
        if value is not None and value < least:
            raise ValueError(f"{key}={value}: at least {least} is needed")
    method.check_options(asdict(options))
    check_number("model.guidance", model.guidance)
    if not run.run_dir.strip():
        raise ValueError(f"run_dir={run.run_dir!r}: a folder's name is needed")
    typed = {"model": model, "data": data, "logger": logger}
    sections = {k: asdict(v) for k, v in {**typed, "method": options}.items()}
    for key, value in {**sections, **asdict(run)}.items():
        config[key] = value
    method.check_run(config)
    precision_of(config)
    check_trainer(config)
    check_secrets(plain(config))
    if run.after is not None:
        go_on(config, base_name(config))
    check_prompts(concept_of(config))
    return concept


def check_evaluation(config: DictConfig) -> None:
    """Refuse a section `evaluation` that is not of the four prompt sets; it becomes typed.

    Raises:
        ValueError: names the key, the value and what is allowed.
    """
    if (protocol := config.evaluation.get("name", "emoji")) != "emoji":
        raise ValueError(
            f"evaluation={protocol}: a run ends with the four prompt sets (emoji); "
            f"`unlearn evaluate RUN_DIR evaluation={protocol}` runs a published protocol"
        )
    evaluation = section(config.evaluation, "evaluation", EvaluationConfig)
    for key, least in (("seeds", 1), ("sampling_steps", 1), ("first_seed", 0)):
        if (value := getattr(evaluation, key)) < least:
            raise ValueError(f"evaluation.{key}={value}: at least {least} is needed")
    config.evaluation = asdict(evaluation)


def options_schema(method: Any) -> type:
    """A dataclass of a method's options: its constructors' keyword arguments that it takes."""
    fields: dict[str, tuple[type, Any]] = {"name": (str, MISSING)}
    for part in reversed(method.__mro__):
        if "__init__" in vars(part) and part.__module__.startswith("unlearn.methods"):
            hints = get_type_hints(part.__init__)  # type: ignore[misc]
            for name, parameter in inspect.signature(part.__init__).parameters.items():  # type: ignore[misc]
                if parameter.kind is parameter.KEYWORD_ONLY:
                    fields[name] = hints[name], parameter.default
    for name in method.LACKS:
        del fields[name]
    return make_dataclass("Options", [(k, *v) for k, v in fields.items()])


def precision_of(config: DictConfig) -> str:
    """Lightning's precision; "auto" is bf16 where the machine has it natively, else fp32.

    Raises:
        ValueError: another precision; fp16 with the reason.
    """
    precision = str(config.trainer.precision)
    if "16" in precision and "bf16" not in precision:
        raise ValueError(
            f"trainer.precision={precision!r}: the gradients of unlearning and relearning are "
            "combined by hand, where fp16's loss scaling cannot reach; allowed are "
            f"{list(PRECISIONS)}"
        )
    if precision not in PRECISIONS:
        raise ValueError(f"trainer.precision={precision!r}: allowed are {list(PRECISIONS)}")
    if precision != "auto":
        return precision
    if config.trainer.accelerator != "cpu" and torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.cpu._is_avx512_bf16_supported()
    return "bf16-mixed" if native else "32-true"


def base_of(config: DictConfig) -> dict[str, Any]:
    """A run's base model: arguments of `load_pipeline`."""
    keys = ("pretrained", "random_weights", "width", "image_size", "config")
    return {key: config.model[key] for key in keys if key in config.model}


def base_name(config: DictConfig) -> str:
    """The base model's name; one of random weights is not to be taken for the model itself."""
    name = str(config.model.pretrained)
    return f"random:{name}" if base_of(config).get("random_weights") else name


def sampler_of(config: DictConfig, steps: int) -> dict[str, Any]:
    """How a run draws images with so many steps: arguments of `generate`."""
    guidance = float(config.model.guidance)
    sampler = {"steps": steps, "guidance": guidance, "precision": precision_of(config)}
    return {**sampler, "batch_size": config.get("drawing_batch")}


@cache
def embedded_concepts() -> list[str]:
    """The concepts of the embedded model: those whose anchor has no prompt pack."""
    names = [name for name in files_of("concept") if name != "custom"]
    return [n for n in names if compose([f"concept={n}"]).anchor.prompts is None]


def compose(overrides: list[str], root: str = "train") -> DictConfig:
    """The config that the command line would compose; `concept=[a,b]` is one of both concepts.

    Raises:
        ValueError: see `said_plainly`, `listed` and `check_alike`.
    """
    own = own_conf()
    found_too = [f"hydra.searchpath=['file://{own}']"] if own else []
    with (
        said_plainly(overrides),
        hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"),
    ):
        names, rest = listed(overrides)
        if not names:
            return hydra.compose(root, [*found_too, *overrides])
        chosen = [[*found_too, *rest, f"concept={name}"] for name in names]
        configs = [hydra.compose(root, own_overrides) for own_overrides in chosen]
    check_alike(configs)
    return join_configs(configs)
