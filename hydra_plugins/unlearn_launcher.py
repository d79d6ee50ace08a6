"""Hold the launcher `pool` of `unlearn train -m`: jobs side by side on one machine."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from hydra import version
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobRuntime, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict
from tqdm import tqdm

from unlearn.config.jobs import compose_job
from unlearn.config.schema import PoolOptions
from unlearn.config.sections import parse_section
from unlearn.sweeps.jobs import keep_error, read_failure
from unlearn.sweeps.pool import PoolJob, run_jobs


class PoolLauncher(Launcher):
    """The launcher that runs jobs in a pool of processes.

    Args:
        workers: the number of jobs at the same time, which share out the processor's cores.

    Raises:
        ValueError: `workers` is less than 1.
    """

    hydra_context: HydraContext
    task_function: TaskFunction
    config: DictConfig

    def __init__(self, workers: int) -> None:
        options = parse_section({"workers": workers}, "hydra.launcher", PoolOptions)
        self.workers = options.workers

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep what Hydra gives: its context, the task and the configuration."""
        self.hydra_context, self.task_function = hydra_context, task_function
        self.config = config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run jobs, and return the results of those whose process did not die.

        A job that fails or dies leaves error.txt in its run directory.

        Args:
            job_overrides: the overrides of each job.
            initial_job_idx: the number of the first job.
        """

        setup_globals()
        overrides = tqdm(job_overrides, desc="composing", unit="job", leave=False)
        jobs = [self.compose(list(own), n) for n, own in enumerate(overrides, initial_job_idx)]
        given = {job.run_dir: own for job, own in zip(jobs, job_overrides, strict=True)}
        returns: dict[str, JobReturn] = {}

        def finish(run: str, returned: JobReturn) -> str | None:
            returns[run] = returned
            return read_failure(Path(run))

        perform = partial(run_one, str(version.getbase()), self.hydra_context, self.task_function)
        pooled = {
            job.run_dir: PoolJob(
                Path(job.run_dir), partial(perform, job), str(job.trainer.devices) == "1"
            )
            for job in jobs
        }
        errors = run_jobs(pooled, finish, self.workers)
        for run in errors.keys() - returns.keys():
            keep_error(Path(run), errors[run], given[run])
        return [returns[run] for run in given if run in returns]

    def compose(self, overrides: list[str], number: int) -> DictConfig:
        """Return a job's whole configuration, with its run directory resolved.

        Args:
            overrides: the job's overrides.
            number: the job's number.
        """

        config = self.hydra_context.config_loader.load_sweep_config(self.config, overrides)
        with open_dict(config):
            config.hydra.job.num, config.hydra.job.id = number, str(number)
            HydraConfig.instance().set_config(config)  # for ${hydra:...}
            config.run_dir = str(compose_job(config, overrides).run_dir)
        return config


def run_one(
    base: str, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
) -> JobReturn:
    """Run a job in a process of the pool, and return Hydra's result of it.

    The process is told what Hydra's first process knows.

    Args:
        base: Hydra's `version_base`.
        hydra_context: the context of the first process.
        task_function: the function that runs the job.
        config: the job's whole configuration.
    """
    version.setbase(base)
    setup_globals()
    JobRuntime.instance().set("name", config.hydra.job.name)
    return run_job(
        task_function,
        config,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
        hydra_context=hydra_context,
    )
