"""Run the jobs of a sweep; a job that fails stops no other job."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from unlearn.config.compose import compose
from unlearn.config.parse import parse_config
from unlearn.config.run_config import RunConfig
from unlearn.config.run_files import read_result
from unlearn.evaluation.goals import describe_outcome
from unlearn.training.run import train
from unlearn.training.run_dir import ERROR_FILE
from unlearn.utils.atomic import write_text
from unlearn.utils.credentials import hide_secrets, is_secret


def train_overrides(overrides: Sequence[str]) -> Path:
    """Compose, check and train one run, and return its run directory.

    Raises:
        ValueError: an override is not valid.
        RunError: the run met a fault that it cannot go on with.
    """
    return train(parse_config(compose(list(overrides))))


def run_job(run: Path, overrides: Sequence[str], parse: Callable[[], RunConfig]) -> None:
    """Run a job; if it fails, write the reason and the traceback to error.txt.

    Args:
        run: the job's run directory.
        overrides: the job's overrides.
        parse: a function that returns the job's checked configuration.
    """
    try:
        train(parse())
    except Exception as error:  # of any kind: the other jobs may still succeed
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        reason = f"{kind}{' '.join(str(error).split())}"
        keep_error(run, reason, overrides, traceback.format_exc())
        print(f"unlearn: {run}: {hide_secrets(reason)}", file=sys.stderr)


def keep_error(run: Path, reason: str, overrides: Sequence[str], details: str = "") -> None:
    """Write error.txt, without secrets, into the run directory of a job that failed.

    Args:
        run: the job's run directory.
        reason: why the job failed, in one line.
        overrides: the job's overrides; the values of secret keys are left out.
        details: what follows, such as a traceback.
    """
    run.mkdir(parents=True, exist_ok=True)
    given = " ".join(
        f"{key}=***" if is_secret(key) and value not in ("true", "false") else f"{key}{sign}{value}"
        for key, sign, value in (o.partition("=") for o in overrides)
    )
    write_text(run / ERROR_FILE, hide_secrets(f"{reason}\n\noverrides: {given}\n\n{details}"))


def read_failure(run: Path) -> str | None:
    """Return why the last job in a run directory failed, in one line, or None if it finished."""
    if (run / ERROR_FILE).exists():
        return (run / ERROR_FILE).read_text(encoding="utf-8").partition("\n")[0]
    return None if (run / "result.json").exists() else "not finished"


def end_sweep(runs: Sequence[Path]) -> None:
    """Print how each job ended, and the next command; end the program if a job failed.

    Raises:
        ValueError: a result.json is damaged.
        SystemExit: at least one job failed; the status is 1.
    """
    failed = {run: reason for run in runs if (reason := read_failure(run))}
    finished = [run for run in runs if run not in failed]
    for run in finished:
        print(f"{run}: {describe_outcome(read_result(run / 'result.json'))['head']}")
    if finished:
        print(f"See more: unlearn sweep-report {os.path.commonpath([r.parent for r in finished])}")
    if failed:
        lines = [f"  {run}: {reason}" for run, reason in failed.items()]
        head = (
            f"unlearn: {len(failed)} of {len(runs)} jobs failed; the same command tries them again"
        )
        print("\n".join([head, *lines]), file=sys.stderr)
        raise SystemExit(1)
