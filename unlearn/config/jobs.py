"""Compose the jobs of a sweep, and check all of them before the first begins."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from unlearn.config.compose import compose, split_concept_list
from unlearn.config.concepts import trained_sections
from unlearn.config.sections import to_container
from unlearn.config.trainer import check_sweep
from unlearn.utils.credentials import check_secrets
from unlearn.utils.files import parse_yaml, read_text


def compose_job(config: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """Return the configuration of a job that Hydra composed.

    Hydra merges the files of `concept=[a,b]`. Such a job is composed again, for both concepts.
    """
    if not split_concept_list(overrides)[0]:
        return config
    GlobalHydra.instance().clear()
    return compose(list(overrides))


def read_jobs(path: Path) -> list[list[str]]:
    """Return the jobs of a YAML file, each a list of overrides.

    Raises:
        ValueError: the file is missing, or holds anything but a list of lists of overrides.
    """
    key = f"hydra.sweeper.jobs={str(path)!r}"
    try:
        jobs = parse_yaml(read_text(path), str(path))
    except (OSError, ValueError) as error:
        raise ValueError(f"{key}: {error}") from error
    lists = isinstance(jobs, list) and jobs and all(isinstance(job, list) for job in jobs)
    if not (lists and all(isinstance(override, str) for job in jobs for override in job)):
        raise ValueError(f"{key}: a list of lists of overrides is needed")
    return jobs


def check_jobs(configs: Iterable[DictConfig]) -> list[Path]:
    """Check that jobs can run in one sweep, and return their run directories.

    Args:
        configs: each is checked before the next is composed, while Hydra's global state is its own.

    Raises:
        ValueError: a job has no concept, several devices, a secret in its configuration, or the run
            directory of another job.
    """
    runs: list[Path] = []
    for config in configs:
        trained_sections(config)
        check_sweep(to_container(config.trainer))
        check_secrets(to_container(config))  # before one is written to a folder or to error.txt
        run = Path(str(config.run_dir))
        if run in runs:
            raise ValueError(
                f"run_dir={run}: two jobs of the sweep have it; write what differs into it, such "
                "as 'run_dir=runs/${concept.name}-${method.lr}-${seed}'"
            )
        runs.append(run)
    return runs
