"""Check the section `trainer`: what a run asks of the machine."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, get_type_hints

import lightning as L
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from pydantic import ConfigDict, TypeAdapter, ValidationError

from unlearn.config.schema import TrainerOptions
from unlearn.config.sections import parse_section
from unlearn.utils.checks import unknown_key_message

RESERVED_TRAINER_KEYS = (  # options of Lightning's Trainer that `training.run.build_trainer` sets
    "plugins", "default_root_dir", "max_epochs", "logger", "callbacks", "enable_model_summary",
    "enable_checkpointing", "use_distributed_sampler",
    # options that would end a run before its last step, or that do what the method does itself
    "max_steps", "max_time", "min_steps", "min_epochs", "limit_train_batches", "overfit_batches",
    "fast_dev_run", "barebones", "reload_dataloaders_every_n_epochs", "accumulate_grad_batches",
    "gradient_clip_val", "gradient_clip_algorithm", "enable_progress_bar",
)  # fmt: skip


def parse_trainer(section: Mapping[str, Any]) -> tuple[TrainerOptions, dict[str, Any]]:
    """Split the section `trainer` into `TrainerOptions` and further options of Lightning's Trainer.

    Raises:
        ValueError: Lightning's Trainer has no such option, a run sets it itself, or its value is
            not allowed; names the key, the value and what is allowed.
    """
    known = [
        name
        for name in inspect.signature(L.Trainer).parameters
        if name not in RESERVED_TRAINER_KEYS
    ]
    for key, value in section.items():
        if key not in known:
            raise ValueError(unknown_key_message(f"trainer.{key}", value, known))
    own = [each.name for each in fields(TrainerOptions)]
    for key in ("accelerator", "devices", "num_nodes", "strategy", "precision"):
        if section.get(key) is None:
            raise ValueError(f"trainer.{key} is missing: see conf/trainer/default.yaml")
    ours = {key: value for key, value in section.items() if key in own and value is not None}
    ours |= {"precision": str(ours["precision"])}
    more = {key: value for key, value in section.items() if key not in own}
    check_lightning_types(more)
    return parse_section(ours, "trainer", TrainerOptions), more


def check_lightning_types(options: Mapping[str, Any]) -> None:
    """Refuse options of Lightning's Trainer whose values are not of the types that it declares.

    Lightning itself finds many of them out in the middle of a run.

    Raises:
        ValueError: names the key, the value and the type.
    """
    hints = get_type_hints(L.Trainer.__init__)
    for key, value in options.items():
        kind = TypeAdapter(hints[key], config=ConfigDict(arbitrary_types_allowed=True))
        try:
            kind.validate_python(value, strict=True)
        except ValidationError as error:
            allowed = re.sub(r"[\w.]+\.|typing", "", str(hints[key]))
            raise ValueError(f"trainer.{key}={value}: a value of {allowed} is needed") from error


def check_sweep(section: Mapping[str, Any]) -> None:
    """Refuse a sweep whose jobs start processes of their own, since their ranks would mix up.

    Args:
        section: the section `trainer` of a job.

    Raises:
        ValueError: a job of a sweep has several devices, and a strategy that does not spawn.
    """
    devices, strategy = section.get("devices"), section.get("strategy")
    sweeping = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    several = not re.fullmatch(r"1|\[\d+\]", str(devices)) or section.get("num_nodes") != 1
    if sweeping and several and "spawn" not in str(strategy):
        raise ValueError(
            f"trainer.devices={devices}, trainer.strategy={strategy!r}: in a sweep "
            "each job has one device (trainer.devices=1), or trainer.strategy=ddp_spawn"
        )
