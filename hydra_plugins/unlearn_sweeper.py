"""Hold the sweeper of `unlearn train -m`, in the one package that Hydra takes plugins from."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict
from tqdm import tqdm

from unlearn.config.jobs import check_jobs, compose_job, read_jobs
from unlearn.config.parse import parse_config
from unlearn.config.schema import SweeperOptions
from unlearn.config.sections import parse_section
from unlearn.reports.sweep import report_sweep
from unlearn.sweeps.jobs import end_sweep
from unlearn.training.run_dir import read_progress
from unlearn.utils.errors import exit_with_user_error


class UnlearnSweeper(Sweeper):
    """The sweeper that runs every combination of values, or Optuna's trials of an interval.

    A job that fails stops no other job, and neither does a launcher that fails. The outcome of each
    job is read from its run directory.

    Args:
        trials: the number of trials of a search.
        seed: the seed of a search.
        max_batch_size: the number of jobs that the launcher gets at a time; None: all jobs, in a
            search one.
        params: overrides for keys that the command line does not give.
        jobs: a YAML file with a list of jobs, each a list of overrides that win over all others;
            None: one job without overrides of its own.
    """

    hydra_context: HydraContext
    config: DictConfig
    launcher: Launcher

    def __init__(
        self,
        trials: int,
        seed: int,
        max_batch_size: int | None,
        params: dict[str, Any] | None,
        jobs: str | None,
    ) -> None:
        self.trials, self.seed, self.max_batch_size = trials, seed, max_batch_size
        self.params, self.jobs = params or {}, jobs
        self.given = {
            "trials": trials, "seed": seed, "max_batch_size": max_batch_size, "params": params,
            "jobs": jobs,
        }  # fmt: skip

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep what Hydra gives, and build the launcher."""
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run all jobs that are not finished, and end the program if any failed.

        Raises:
            SystemExit: an override is not valid, or a job failed.
        """

        given = [*(f"{key}={value}" for key, value in self.params.items()), *arguments]
        try:
            parse_section(self.given, "hydra.sweeper", SweeperOptions)
            jobs = [self.parse([*given, *own]) for own in self.read_jobs()]
            if any(o.is_interval_sweep() for job in jobs for o in job):
                if self.jobs:
                    raise ValueError(f"hydra.sweeper.jobs={self.jobs!r}: a search takes none")
                runs = self.search(jobs[0])
            else:
                runs = self.combine(jobs)
            end_sweep(runs)
        except ValueError as error:
            exit_with_user_error(error)

    def parse(self, given: list[str]) -> list[Override]:
        """Return the parsed overrides, of each key the last."""
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        return list({o.get_key_element(): o for o in parser.parse_overrides(given)}.values())

    def read_jobs(self) -> list[list[str]]:
        """Return the overrides of each job of the file `jobs`; without a file, one empty list."""

        return read_jobs(Path(self.jobs)) if self.jobs else [[]]

    def compose(self, overrides: Sequence[str], number: int = 0) -> DictConfig:
        """Return the configuration of a job.

        Args:
            overrides: the job's overrides.
            number: the job's number.
        """

        config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config):
            config.hydra.job.num = number
            HydraConfig.instance().set_config(config)  # for ${hydra:...}, as in the job
            config.pop("hydra")
        return compose_job(config, overrides)

    def is_finished(self, overrides: Sequence[str]) -> bool:
        """Return whether a job's run directory holds the whole run.

        Raises:
            ValueError: the configuration is not valid, or the folder holds another run.
        """
        return read_progress(parse_config(self.compose(overrides))).finished

    def launch(self, jobs: Sequence[Sequence[str]], first: int) -> None:
        """Run jobs by the launcher, and print its error if it fails.

        Args:
            jobs: the overrides of each job.
            first: the number of the first job.
        """
        try:
            self.launcher.launch(jobs, initial_job_idx=first)
        except Exception as error:  # such as a process that died; other jobs may be finished
            name = type(self.launcher).__name__
            print(f"unlearn: {name}: {type(error).__name__}: {error}", file=sys.stderr)

    def combine(self, overrides: list[list[Override]]) -> list[Path]:
        """Run every combination of each list of overrides, and return the run directories."""

        jobs = [job for own in overrides for job in BasicSweeper.split_arguments(own, None)[0]]
        checked = tqdm(jobs, desc="checking", unit="job", leave=False)
        runs = check_jobs(self.compose(job, number) for number, job in enumerate(checked))
        size = self.max_batch_size or len(jobs)
        for first in range(0, len(jobs), size):
            self.launch(jobs[first : first + size], first)
        return runs

    def search(self, overrides: list[Override]) -> list[Path]:
        """Run the trials of a search, report them, and return their run directories.

        Raises:
            ValueError: Optuna is missing, there is no judge, or the folder holds another search.
        """

        try:
            from unlearn.sweeps.search import Search, search_space
        except ModuleNotFoundError as error:
            raise ValueError(
                f"hydra.sweeper: {error}; an interval needs the extra `sweeps`"
            ) from error

        fixed = [str(o.input_line) for o in overrides if not o.is_sweep_override()]
        config = self.compose(fixed)
        if config.evaluation.judge == "none":
            raise ValueError("evaluation.judge='none': a search needs rates; choose a judge")
        (folder,) = check_jobs([config])
        search = Search(folder, search_space(overrides), self.seed)
        missing = []
        for number in range(self.trials):
            params = search.recorded(number)
            if params and self.is_finished([*fixed, *search.overrides(number, params)]):
                search.add(number, params)
            else:
                missing.append((number, params))
        size = self.max_batch_size or 1
        for start in range(0, len(missing), size):
            batch = {number: search.ask(number, p) for number, p in missing[start : start + size]}
            jobs = [[*fixed, *search.overrides(n, trial.params)] for n, trial in batch.items()]
            self.launch(jobs, start)
            for number, trial in batch.items():
                search.tell(number, trial)
        report_sweep([folder])
        return [search.run(number) for number in range(self.trials)]
