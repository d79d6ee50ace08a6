"""Run `unlearn evaluate`."""

from __future__ import annotations

from unlearn.config.overrides import split_arguments
from unlearn.evaluation.jobs import evaluate_all
from unlearn.utils.errors import RunError, exit_with_user_error

USAGE = "usage: unlearn evaluate RUN_DIR... [evaluation=NAME] [overrides]"


def run(arguments: list[str]) -> None:
    """Evaluate the runs, or the weights from elsewhere, that the arguments name.

    Raises:
        ValueError: there is no model, or a model or an override is not valid.
    """
    paths, overrides = split_arguments(arguments)
    if not paths:
        raise ValueError(USAGE)
    try:
        evaluate_all(paths, overrides)
    except RunError as error:
        exit_with_user_error(error)
