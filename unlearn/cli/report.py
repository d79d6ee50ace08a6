"""Run `unlearn report`."""

from __future__ import annotations

from unlearn.config.overrides import parse_options, split_arguments
from unlearn.reports.page import ReportOptions, report_runs

USAGE = "usage: unlearn report RUN_DIR... [out=report.html] [overwrite=true]"


def run(arguments: list[str]) -> None:
    """Write one HTML page of the runs that the arguments name.

    Raises:
        ValueError: there is no run, a run is not finished or damaged, or an option is not valid.
    """
    paths, overrides = split_arguments(arguments)
    if not paths:
        raise ValueError(USAGE)
    options = parse_options(overrides, ReportOptions)
    print(report_runs(paths, options))
