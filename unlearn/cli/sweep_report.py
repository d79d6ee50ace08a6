"""Run `unlearn sweep-report`."""

from __future__ import annotations

from pathlib import Path

from unlearn.reports.sweep import report_sweep

USAGE = "usage: unlearn sweep-report DIR [DIR ...]"


def run(arguments: list[str]) -> None:
    """Rank the runs in the folders that the arguments name.

    Raises:
        ValueError: there is no such folder, no run in one, or matplotlib is missing.
    """
    if not arguments:
        raise ValueError(USAGE)
    report_sweep([Path(folder) for folder in arguments])
