"""What a run asks of the machine: the section `trainer`, checked."""

from __future__ import annotations

import inspect
import logging
import re

import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig

from unlearn.config.sections import to_container
from unlearn.utils.checks import unknown_key_message

OURS = (  # options of Lightning's Trainer that are not the user's: see `train.build_trainer`
    "plugins", "default_root_dir", "max_epochs", "logger", "callbacks", "enable_model_summary",
    "enable_checkpointing", "use_distributed_sampler",
    # what would end a run before its last step, or is the method's to do
    "max_steps", "max_time", "min_steps", "min_epochs", "limit_train_batches", "overfit_batches",
    "fast_dev_run", "barebones", "reload_dataloaders_every_n_epochs", "accumulate_grad_batches",
    "gradient_clip_val", "gradient_clip_algorithm", "enable_progress_bar",
)  # fmt: skip
PLACE = ("accelerator", "devices", "num_nodes", "strategy")  # where a run runs


def check_trainer(config: DictConfig) -> None:
    """Refuse options that Lightning's Trainer does not take, or that a run sets itself.

    Raises:
        ValueError: names the key, the value and what is allowed.
    """
    options = to_container(config.trainer)
    known = [name for name in inspect.signature(L.Trainer).parameters if name not in OURS]
    for key, value in options.items():
        if key not in known:
            raise ValueError(unknown_key_message(f"trainer.{key}", value, known))
    for key in (*PLACE, "precision"):
        if options.get(key) is None:
            raise ValueError(f"trainer.{key} is missing: see conf/trainer/default.yaml")
    if options.get("log_every_n_steps") == 0:
        raise ValueError("trainer.log_every_n_steps=0: at least 1 is needed")
    check_sweep(config)


def claim_device(config: DictConfig) -> None:
    """Make the GPU that Lightning will give this process, if any, the current one: work begins
    before Lightning's own.

    Raises:
        ValueError: there are no such devices or strategy here, or another option has a value that
            Lightning does not take; names the options, and what it says of them.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # for the run too
    options = to_container(config.trainer)
    del options["precision"]  # "auto" is ours
    try:
        trainer = L.Trainer(
            **options, logger=False, enable_checkpointing=False, enable_progress_bar=False
        )
    except (MisconfigurationException, ValueError, TypeError) as error:
        given = ", ".join(f"trainer.{key}={value}" for key, value in options.items())
        raise ValueError(f"{given}: {' '.join(str(error).split())}") from error
    if (device := trainer.strategy.root_device).type == "cuda":
        torch.cuda.set_device(device)


def check_sweep(config: DictConfig) -> None:
    """Refuse a sweep over jobs that start processes of their own: their ranks would mix up.

    Raises:
        ValueError: several devices in a sweep, with a strategy that does not spawn.
    """
    trainer = config.trainer
    sweeping = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    several = not re.fullmatch(r"1|\[\d+\]", str(trainer.devices)) or trainer.num_nodes != 1
    if sweeping and several and "spawn" not in str(trainer.strategy):
        raise ValueError(
            f"trainer.devices={trainer.devices}, trainer.strategy={trainer.strategy!r}: in a sweep "
            "each job has one device (trainer.devices=1), or trainer.strategy=ddp_spawn"
        )
