"""Run `unlearn merge`."""

from __future__ import annotations

from pathlib import Path

from unlearn.config.overrides import parse_options, split_arguments
from unlearn.exports.merge import MergeOptions, merge_runs

USAGE = "usage: unlearn merge RUN_DIR RUN_DIR... OUT_DIR [scale=1.0]"


def run(arguments: list[str]) -> None:
    """Add the weight changes of several runs, and write a new run directory.

    Raises:
        ValueError: the runs do not fit together, or an option is not valid.
    """
    paths, overrides = split_arguments(arguments)
    if len(paths) < 3:
        raise ValueError(USAGE)
    options = parse_options(overrides, MergeOptions)
    print(merge_runs([Path(p) for p in paths[:-1]], Path(paths[-1]), options))
