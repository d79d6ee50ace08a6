"""Run `unlearn report`."""

from __future__ import annotations

from unlearn.reports.page import report_runs


def run(arguments: list[str]) -> None:
    """Write one page of the runs that the arguments name.

    Raises:
        ValueError: there is no run, one is not finished or damaged, or an option is not valid.
    """
    print(report_runs(arguments))
