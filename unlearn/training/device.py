"""Claim the device that Lightning will give a process, before Lightning does."""

from __future__ import annotations

import logging
import os

import lightning as L
import torch

from unlearn.config.run_config import RunConfig

PROCESSES_A_CORE = 4  # of a run on the CPU; more only wait for each other


def claim_device(config: RunConfig) -> None:
    """Make the GPU that Lightning will give this process, if any, the current one.

    A run uses the device before Lightning sets it.

    Raises:
        ValueError: there are no such devices or strategy here, or another option has a value that
            Lightning does not take; names the options, and quotes Lightning.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # stays so for the run
    options = trainer_options(config)
    try:
        trainer = L.Trainer(
            **options, logger=False, enable_checkpointing=False, enable_progress_bar=False
        )
    except Exception as error:  # Lightning has many, of packages that are missing too
        given = ", ".join(f"trainer.{key}={value}" for key, value in options.items())
        raise ValueError(f"{given}: {' '.join(str(error).split())}") from error
    device, most = trainer.strategy.root_device, PROCESSES_A_CORE * (os.cpu_count() or 1)
    if device.type == "cpu" and trainer.num_devices > most:
        raise ValueError(
            f"trainer.devices={config.trainer.devices}: on the CPU each device is a process, and "
            f"the {os.cpu_count()} cores of this machine take at most {most}"
        )
    if device.type == "cuda":
        torch.cuda.set_device(device)


def trainer_options(config: RunConfig) -> dict[str, object]:
    """Return the options of Lightning's Trainer that the user chose, all but the precision."""
    own = config.trainer
    return {
        "accelerator": own.accelerator,
        "devices": own.devices,
        "num_nodes": own.num_nodes,
        "strategy": own.strategy,
        "log_every_n_steps": own.log_every_n_steps,
        **config.lightning_options,
    }
