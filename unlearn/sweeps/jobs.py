"""The jobs of a sweep: checked before the first, each kept from stopping the others."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path

import yaml
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from unlearn.config.compose import compose, split_concept_list
from unlearn.config.concepts import trained_sections
from unlearn.config.parse import check_config
from unlearn.config.sections import to_container
from unlearn.config.trainer import check_sweep
from unlearn.training.run import train
from unlearn.training.run_dir import ERROR_FILE, read_progress
from unlearn.utils.atomic import write_text
from unlearn.utils.credentials import check_secrets, hide_secrets, is_secret


def compose_job(config: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """What Hydra composed, or where it merged the files of `concept=[a,b]`, a config of both."""
    if not split_concept_list(overrides)[0]:
        return config
    GlobalHydra.instance().clear()
    return compose(list(overrides))


def read_jobs(path: Path) -> list[list[str]]:
    """The jobs of a YAML file, each a list of overrides.

    Raises:
        ValueError: the file is missing, or holds something else.
    """
    key = f"hydra.sweeper.jobs={str(path)!r}"
    try:
        jobs = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{key}: {error}") from error
    lists = isinstance(jobs, list) and jobs and all(isinstance(job, list) for job in jobs)
    if not (lists and all(isinstance(override, str) for job in jobs for override in job)):
        raise ValueError(f"{key}: a list of lists of overrides is needed")
    return jobs


def check_jobs(configs: Iterable[DictConfig]) -> list[Path]:
    """The run directories of jobs, which can be one sweep.

    Args:
        configs: each is checked before the next is composed, while Hydra knows it.

    Raises:
        ValueError: a job has no concept, several devices, a secret in its config, or the run
            directory of another.
    """
    runs: list[Path] = []
    for config in configs:
        trained_sections(config)
        check_sweep(config)
        check_secrets(
            to_container(config)
        )  # before a folder has its name, or error.txt its overrides
        run = Path(str(config.run_dir))
        if run in runs:
            raise ValueError(
                f"run_dir={run}: two jobs of the sweep have it; write what differs into it, such "
                "as 'run_dir=runs/${concept.name}-${method.lr}-${seed}'"
            )
        runs.append(run)
    return runs


def is_job_finished(config: DictConfig) -> bool:
    """Whether a job's run directory holds the whole run.

    Raises:
        ValueError: the config is not valid, or the folder holds another run.
    """
    check_config(config)
    return read_progress(config, Path(config.run_dir)).finished


def run_job(config: DictConfig, overrides: Sequence[str]) -> None:
    """Run a job; where it fails, error.txt in its run directory says why and where."""
    run = Path(str(config.run_dir))
    try:
        train(config)
    except Exception as error:  # whatever it is, other jobs may do better
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        reason = f"{kind}{' '.join(str(error).split())}"
        keep_error(run, reason, overrides, traceback.format_exc())
        print(f"unlearn: {run}: {hide_secrets(reason)}", file=sys.stderr)


def keep_error(run: Path, reason: str, overrides: Sequence[str], details: str = "") -> None:
    """Write error.txt, which holds no secret, into the run directory of a job that failed."""
    run.mkdir(parents=True, exist_ok=True)
    given = " ".join(
        f"{key}=***" if is_secret(key) and value not in ("true", "false") else f"{key}{sign}{value}"
        for key, sign, value in (o.partition("=") for o in overrides)
    )
    write_text(run / ERROR_FILE, hide_secrets(f"{reason}\n\noverrides: {given}\n\n{details}"))


def read_failure(run: Path) -> str | None:
    """Why a job left no whole run in its directory; None: it did."""
    if (run / ERROR_FILE).exists():
        return (run / ERROR_FILE).read_text(encoding="utf-8").partition("\n")[0]
    return None if (run / "result.json").exists() else "not finished"


def raise_for_failures(runs: Sequence[Path]) -> None:
    """Say what became of a sweep's jobs.

    Raises:
        SystemExit: some failed.
    """
    failed = {run: reason for run in runs if (reason := read_failure(run))}
    if failed:
        lines = [f"  {run}: {reason}" for run, reason in failed.items()]
        head = (
            f"unlearn: {len(failed)} of {len(runs)} jobs failed; the same command tries them again"
        )
        print("\n".join([head, *lines]), file=sys.stderr)
        raise SystemExit(1)
