"""Optuna's search for settings that forget more or keep more, one run directory a trial."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from hydra.core.override_parser.types import IntervalSweep, Override, QuotedString
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from unlearn.evaluation.score import column_rate, read_images, score
from unlearn.sweeps.jobs import read_failure
from unlearn.utils.atomic import write_text

TRIAL_FILE = "trial.json"
OBJECTIVES: dict[str, Any] = {"unseen target": "minimize", "retention": "maximize"}
optuna.logging.set_verbosity(optuna.logging.WARNING)


def search_space(overrides: Sequence[Override]) -> dict[str, BaseDistribution]:
    """What is searched, by config keys: intervals and lists of values.

    An interval with the tag `log` is searched by its logarithm.
    """
    space: dict[str, BaseDistribution] = {}
    for override in overrides:
        if override.is_interval_sweep():
            interval = override.value()
            assert isinstance(interval, IntervalSweep)
            ends, log = (interval.start, interval.end), "log" in interval.tags
            whole = all(isinstance(end, int) for end in ends)
            kind = IntDistribution if whole else FloatDistribution
            space[override.get_key_element()] = kind(*ends, log=log)  # type: ignore[arg-type]
        elif override.is_sweep_override():
            given: list[Any] = list(override.sweep_iterator())
            values = [value.text if isinstance(value, QuotedString) else value for value in given]
            space[override.get_key_element()] = CategoricalDistribution(values)
    return space


def objective_values(run: Path) -> list[float]:
    """The values of `OBJECTIVES` of a finished run.

    Raises:
        ValueError: see `score`.
    """
    images = read_images(run)
    score(images)
    return [float(column_rate(images, column).value or 0) for column in OBJECTIVES]


class Search:
    """Trials, the Nth of which is the run directory N of a folder, where it can be found again.

    Each holds what was chosen, in trial.json. There is no other record: the study is made anew from
    the run directories, so that a search goes on after it was stopped at any point. What is
    proposed for trial N depends on the seed, on N and on the finished trials alone.

    Args:
        folder: of the run directories.
        space: what is searched, by config keys.
        seed: of the sampler.
    """

    def __init__(self, folder: Path, space: Mapping[str, BaseDistribution], seed: int) -> None:
        self.folder, self.space, self.seed = folder, dict(space), seed
        self.study = optuna.create_study(directions=list(OBJECTIVES.values()))

    def run(self, number: int) -> Path:
        """A trial's run directory."""
        return self.folder / f"{number:03d}"

    def overrides(self, number: int, params: Mapping[str, Any]) -> list[str]:
        """What makes a trial of the sweep's other overrides."""
        values = [f"{k}={'null' if value is None else value}" for k, value in params.items()]
        return [*values, f"run_dir='{self.run(number)}'"]

    def recorded(self, number: int) -> dict[str, Any] | None:
        """The values of a trial that was begun.

        Raises:
            ValueError: they are not of this search, or the file is damaged.
        """
        path = self.run(number) / TRIAL_FILE
        if not path.exists():
            return None
        try:
            params = dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}: damaged ({error}); delete it to choose anew") from error
        try:
            self.frozen(params, [0.0] * len(OBJECTIVES))
        except ValueError as error:
            raise ValueError(
                f"run_dir={self.folder}: holds a search of another space, whose trial {number} has "
                f"{params}; choose another run_dir"
            ) from error
        return params

    def frozen(self, params: dict[str, Any], values: list[float]) -> FrozenTrial:
        """A finished trial."""
        return create_trial(params=params, distributions=self.space, values=values)

    def add(self, number: int, params: dict[str, Any]) -> None:
        """Take up a finished trial; one that has nothing to score teaches nothing."""
        with contextlib.suppress(ValueError):
            self.study.add_trial(self.frozen(params, objective_values(self.run(number))))

    def ask(self, number: int, params: dict[str, Any] | None = None) -> Trial:
        """A trial to run: of the values given, or else proposed by TPE."""
        seed = np.random.SeedSequence([self.seed, number]).generate_state(1)
        self.study.sampler = optuna.samplers.TPESampler(seed=int(seed[0]))
        if params:
            self.study.enqueue_trial(params)
        trial = self.study.ask(self.space)
        self.run(number).mkdir(parents=True, exist_ok=True)
        write_text(self.run(number) / TRIAL_FILE, json.dumps(trial.params, indent=2) + "\n")
        return trial

    def tell(self, number: int, trial: Trial) -> None:
        """Take the result of a trial that was run."""
        try:
            values = None if read_failure(self.run(number)) else objective_values(self.run(number))
        except ValueError as error:
            print(f"unlearn: {error}; the search learns nothing from it", file=sys.stderr)
            values = None
        self.study.tell(trial, values, TrialState.COMPLETE if values else TrialState.FAIL)
