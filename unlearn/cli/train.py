"""Run `unlearn train`, which Hydra composes and launches, so that `-m` sweeps."""

from __future__ import annotations

import os
import sys
from functools import partial, update_wrapper
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from unlearn.config.compose import split_concept_list
from unlearn.config.jobs import compose_job
from unlearn.config.overrides import check_flags, hydra_errors_as_value_errors
from unlearn.config.parse import parse_config
from unlearn.config.search_path import conf_dir, with_search_path
from unlearn.sweeps.jobs import run_job
from unlearn.training.run import train
from unlearn.utils.errors import RunError, exit_with_user_error


def train_composed(command_line: list[str], config: Any) -> None:
    """Run one job of the configuration that Hydra composed.

    Args:
        command_line: `sys.argv` of the first process.
        config: the configuration that Hydra composed.
    """
    sys.argv = command_line  # Lightning starts the other ranks of DDP by this command line
    given = list(HydraConfig.get().overrides.task)
    try:
        config = compose_job(config, given)
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            run_job(Path(str(config.run_dir)), given, partial(parse_config, config))
        else:
            train(parse_config(config))
    except (ValueError, RunError) as error:
        exit_with_user_error(error)


def run(overrides: list[str]) -> None:
    """Compose the overrides and launch the job, or with `-m` every job of the sweep.

    Raises:
        ValueError: an override or a flag is not valid.
    """
    check_flags(overrides)
    if "--cfg" in overrides and split_concept_list([o for o in overrides if "=" in o])[0]:
        raise ValueError("--cfg: shows one concept's configuration; a run's is its config.yaml")
    job = update_wrapper(partial(train_composed, list(sys.argv)), train_composed)
    sys.argv = [sys.argv[0], *with_search_path(overrides)]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra would print its own errors, and exit with 1
    with hydra_errors_as_value_errors(overrides):
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="train")(job)()
