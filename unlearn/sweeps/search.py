"""Search by Optuna for settings that forget more or keep more, with a run directory a trial."""

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

from unlearn.config.run_files import read_images
from unlearn.evaluation.score import column_rate, forget_keep_score
from unlearn.sweeps.jobs import read_failure
from unlearn.utils.atomic import write_text
from unlearn.utils.files import read_json

TRIAL_FILE = "trial.json"
OBJECTIVES: dict[str, Any] = {"unseen target": "minimize", "retention": "maximize"}
optuna.logging.set_verbosity(optuna.logging.WARNING)


def search_space(overrides: Sequence[Override]) -> dict[str, BaseDistribution]:
    """Return the distribution of each key whose override is an interval or a list of values.

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
    """Return a finished run's values of the `OBJECTIVES`, in their order.

    Raises:
        ValueError: the run has nothing to score, as `forget_keep_score` says.
    """
    images = read_images(run)
    forget_keep_score(images)
    return [float(column_rate(images, column).value or 0) for column in OBJECTIVES]


class Search:
    """A search, whose trial N is the run directory N of a folder.

    The trial.json of each run directory holds the values that were chosen. There is no other
    record. The study is built anew from the run directories, so a search can go on after a stop at
    any point. The proposal for trial N depends on the seed, on N and on the finished trials alone.

    Args:
        folder: the folder of the run directories.
        space: the distribution of each searched key.
        seed: the sampler's seed.
    """

    def __init__(self, folder: Path, space: Mapping[str, BaseDistribution], seed: int) -> None:
        self.folder, self.space, self.seed = folder, dict(space), seed
        self.study = optuna.create_study(directions=list(OBJECTIVES.values()))

    def run(self, number: int) -> Path:
        """Return a trial's run directory."""
        return self.folder / f"{number:03d}"

    def overrides(self, number: int, params: Mapping[str, Any]) -> list[str]:
        """Return the overrides that a trial adds to those of the sweep.

        Args:
            number: the trial's number.
            params: the trial's values, by key.
        """
        values = [f"{k}={'null' if value is None else value}" for k, value in params.items()]
        return [*values, f"run_dir='{self.run(number)}'"]

    def recorded(self, number: int) -> dict[str, Any] | None:
        """Return the values of a trial that was begun, by key, or None if it was not begun.

        Raises:
            ValueError: the values are not of this search, or trial.json is damaged.
        """
        path = self.run(number) / TRIAL_FILE
        if not path.exists():
            return None
        try:
            params = read_json(path, dict[str, Any])
        except ValueError as error:
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
        """Return a finished trial of these values, by key, and objective values.

        Raises:
            ValueError: the values are not of this search's space.
        """
        return create_trial(params=params, distributions=self.space, values=values)

    def add(self, number: int, params: dict[str, Any]) -> None:
        """Add a finished trial to the study, unless its run has nothing to score."""
        with contextlib.suppress(ValueError):
            self.study.add_trial(self.frozen(params, objective_values(self.run(number))))

    def ask(self, number: int, params: dict[str, Any] | None = None) -> Trial:
        """Return a trial to run, and write its trial.json.

        Args:
            number: the trial's number.
            params: the values, by key; None: the sampler TPE proposes them.
        """
        seed = np.random.SeedSequence([self.seed, number]).generate_state(1)
        self.study.sampler = optuna.samplers.TPESampler(seed=int(seed[0]))
        if params:
            self.study.enqueue_trial(params)
        trial = self.study.ask(self.space)
        self.run(number).mkdir(parents=True, exist_ok=True)
        write_text(self.run(number) / TRIAL_FILE, json.dumps(trial.params, indent=2) + "\n")
        return trial

    def tell(self, number: int, trial: Trial) -> None:
        """Tell the study the result of a trial that was run, or that the trial failed."""
        try:
            values = None if read_failure(self.run(number)) else objective_values(self.run(number))
        except ValueError as error:
            print(f"unlearn: {error}; the search learns nothing from it", file=sys.stderr)
            values = None
        self.study.tell(trial, values, TrialState.COMPLETE if values else TrialState.FAIL)
