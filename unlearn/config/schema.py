"""The typed sections of a run's configuration."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional

from omegaconf import MISSING

PRECISIONS = ("32-true", "bf16-mixed", "auto")
LOGGERS = ("csv", "wandb", "tensorboard")
MODES = ("online", "offline")  # of wandb
SECTIONS = ("concept", "anchor", "model", "method", "data", "trainer", "logger", "evaluation")


@dataclass
class ModelConfig:
    """The section `model`: see conf/model."""

    pretrained: str = MISSING
    vocabulary: Optional[str] = None  # noqa: UP045 - OmegaConf reads these annotations
    guidance_scale: float = MISSING
    recipes: list[str] = MISSING
    random_weights: bool = False
    width: float = 1.0
    image_size: Optional[int] = None  # noqa: UP045
    config: Optional[str] = None  # noqa: UP045


@dataclass
class DataConfig:
    """The section `data`: see conf/data."""

    images: int = MISSING
    relearn_images: int = MISSING
    num_inference_steps: int = MISSING
    flip: bool = MISSING
    rescale: bool = MISSING


@dataclass
class EvaluationConfig:
    """The section `evaluation` of the four prompt sets: see conf/evaluation/emoji.yaml."""

    name: str = "prompt_sets"
    images_per_prompt: int = MISSING
    first_seed: int = MISSING
    num_inference_steps: int = MISSING
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
    steps: int = MISSING
    batch_size: int = MISSING
    gradient_checkpointing: bool = False
    sampling_batch_size: Optional[int] = None  # noqa: UP045
    checkpoint_every: int = MISSING
    keep_every: int = MISSING
    run_dir: str = MISSING
    resume: bool = True
    after: Optional[str] = None  # noqa: UP045
