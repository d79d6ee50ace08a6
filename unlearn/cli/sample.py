"""Run `unlearn sample`."""

from __future__ import annotations

from pathlib import Path

from unlearn.config.saved import load_run_config
from unlearn.evaluation.samples import draw_samples

USAGE = 'usage: unlearn sample RUN_DIR "PROMPT" ["PROMPT" ...]'


def run(arguments: list[str]) -> None:
    """Draw a picture with a row a prompt: the base model's image beside the unlearned model's.

    Raises:
        ValueError: there is no such run, or the model cannot read a prompt.
    """
    if len(arguments) < 2:
        raise ValueError(USAGE)
    print(draw_samples(load_run_config(Path(arguments[0])), arguments[1:])[0])
