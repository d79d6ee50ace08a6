"""Run `unlearn train`, which Hydra composes and launches, so that `-m` sweeps."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from functools import partial, update_wrapper
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from unlearn.config.compose import split_concept_list
from unlearn.config.jobs import compose_job
from unlearn.config.overrides import (
    check_flags,
    check_overrides,
    hydra_errors_as_value_errors,
)
from unlearn.config.parse import parse_config
from unlearn.config.run_config import RunConfig
from unlearn.config.search_path import (
    conf_dir,
    replaced_files,
)
from unlearn.config.sections import to_container
from unlearn.sweeps.jobs import run_job
from unlearn.training.run import train
from unlearn.utils.credentials import hide_secrets
from unlearn.utils.errors import RunError, exit_with_bug, exit_with_user_error

# what Lightning adds to the command line of the other ranks of DDP, and conf/train.yaml says too
LIGHTNING = r'hydra\.(run\.dir="\."|job\.name=train_ddp_process_\d+|output_subdir=null)'
SHOWS = {"-c", "--cfg", "-i", "--info"}  # flags of Hydra that print the configuration


def train_composed(command_line: list[str], config: Any) -> None:
    """Run one job of the configuration that Hydra composed.

    Args:
        command_line: `sys.argv` of the first process.
        config: the configuration that Hydra composed.
    """
    sys.argv = command_line  # Lightning starts the other ranks of DDP by this command line
    given = [str(o) for o in to_container(HydraConfig.get().overrides.task, resolve=False)]
    try:
        with hydra_errors_as_value_errors(given):
            config = compose_job(config, given)
        if HydraConfig.get().mode == RunMode.MULTIRUN:  # `check_jobs` resolved its run_dir
            run_job(Path(str(config.run_dir)), given, partial(parse_composed, config, given))
        else:
            train(parse_composed(config, given))
    except (ValueError, OSError, RunError) as error:
        exit_with_user_error(error)
    except Exception as error:  # Hydra would print the overrides, which may hold a secret
        exit_with_bug(error)


def parse_composed(config: Any, overrides: list[str]) -> RunConfig:
    """Return the run that a composed configuration describes.

    Raises:
        ValueError: a value is not allowed, or cannot be resolved.
    """
    with hydra_errors_as_value_errors(overrides):
        return parse_config(config)


def run(overrides: list[str]) -> None:
    """Compose the overrides and launch the job, or with `-m` every job of the sweep.

    Raises:
        ValueError: an override or a flag is not valid.
    """
    overrides = [o for o in overrides if not re.fullmatch(LIGHTNING, o)]
    check_flags(overrides)
    values = [o for o in overrides if "=" in o or o.startswith("~")]
    with hydra_errors_as_value_errors(values):
        check_overrides(values)
        several, _ = split_concept_list(values)
        if several and "--cfg" in overrides:
            raise ValueError("--cfg: shows one concept's configuration; a run's is its config.yaml")
    for name in replaced_files(values):
        print(f"unlearn: {name} of this folder is taken, not the shipped one", file=sys.stderr)
    job = update_wrapper(partial(train_composed, list(sys.argv)), train_composed)
    flags = [o for o in overrides if o not in values]  # last: none may stand between overrides
    sys.argv = [sys.argv[0], *values, *flags]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra would print its own errors, and exit with 1
    launch = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="train")(job)
    with hydra_errors_as_value_errors(overrides):
        if not SHOWS & {flag.partition("=")[0] for flag in overrides}:
            launch()
            return
        with contextlib.redirect_stdout(io.StringIO()) as shown:
            launch()
    print(hide_secrets(shown.getvalue()), end="")
