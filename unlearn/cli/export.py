"""Run `unlearn export`."""

from __future__ import annotations

from pathlib import Path

from unlearn.config.overrides import parse_options, split_arguments
from unlearn.config.saved import load_run_config
from unlearn.exports.formats import ExportOptions, export_as

USAGE = "usage: unlearn export RUN_DIR [OUT] [format=FORMAT] [error=SHARE] [overwrite=true]"


def run(arguments: list[str]) -> None:
    """Write a run in the format of another program.

    Raises:
        ValueError: there is no such run, an option is not valid, or the format cannot hold the run.
    """
    paths, overrides = split_arguments(arguments)
    if len(paths) not in (1, 2):
        raise ValueError(USAGE)
    config = load_run_config(Path(paths[0]))
    options = parse_options(overrides, ExportOptions)
    print(export_as(config, Path(paths[1]) if paths[1:] else None, options))
