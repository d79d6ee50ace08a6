"""Rank finished runs by forgetting and keeping."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from unlearn.config.run_files import read_images
from unlearn.config.saved import read_saved_config
from unlearn.evaluation.intervals import Rate
from unlearn.evaluation.score import SCORE_COLUMNS, column_rate, forget_keep_score
from unlearn.reports.comparison import comparable_settings
from unlearn.sweeps.jobs import read_failure
from unlearn.training.run_dir import ERROR_FILE
from unlearn.utils.files import damage_as_value_errors


class RankedRun(NamedTuple):
    """A finished run with its rank.

    Attributes:
        folder: the run directory.
        settings: the settings that can change the result, by dotted keys.
        rates: the rate of each of the `SCORE_COLUMNS`.
        score: the harmonic mean of retention and of what is forgotten, see `forget_keep_score`.
        rank: the Pareto rank among the runs of the same concept, from 1; 0 before the
            runs are ranked.
    """

    folder: Path
    settings: dict[str, Any]
    rates: dict[str, Rate]
    score: float
    rank: int = 0

    @property
    def concept(self) -> str:
        """The name of the concept that the run unlearned."""
        return str(self.settings.get("concept.name"))

    @property
    def aims(self) -> tuple[float, float]:
        """The unseen-target rate, and retention with a minus, so that both are better when low."""
        unseen, kept = (self.rates[column].value for column in ("unseen target", "retention"))
        assert unseen is not None and kept is not None  # `forget_keep_score` refuses runs without
        return unseen, -kept


def run_folders(folder: Path) -> Iterator[Path]:
    """Yield the run directories in a folder, or the folder itself if it is one.

    No run directory inside of another is among them.
    """
    if any((folder / name).exists() for name in ("config.yaml", ERROR_FILE)):
        yield folder
        return
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            yield from run_folders(path)


def read_ranked_runs(folders: Sequence[Path]) -> tuple[list[RankedRun], dict[Path, str]]:
    """Return the finished runs with their ranks, and the errors of the other run directories.

    The second value holds, by run directory, why its last job failed or why it cannot be ranked. A
    finished run is in both if a later job failed in its directory.
    """
    runs, failed = [], {}
    for folder in folders:
        if reason := read_failure(folder):
            failed[folder] = reason
        if not (folder / "result.json").exists():  # otherwise an earlier job finished here
            continue
        try:
            images = read_images(folder)
            rates = {column: column_rate(images, column) for column in SCORE_COLUMNS}
            saved = read_saved_config(folder)
            with damage_as_value_errors(folder / "config.yaml"):
                settings = comparable_settings(saved)
            runs.append(RankedRun(folder, settings, rates, forget_keep_score(images)))
        except ValueError as error:
            failed[folder] = str(error)
    return rank_runs(runs), failed


def rank_runs(runs: Sequence[RankedRun]) -> list[RankedRun]:
    """Return the runs with their ranks, by concept, the best first; of equal rank by score.

    Runs of different concepts are not compared: each concept has ranks of its own.
    """
    concepts = sorted({run.concept for run in runs})
    return [
        run
        for concept in concepts
        for run in rank_alike([run for run in runs if run.concept == concept])
    ]


def rank_alike(runs: Sequence[RankedRun]) -> list[RankedRun]:
    """Return runs of one concept with their ranks, the best first; of equal rank by score."""
    left, done = list(runs), list[RankedRun]()
    while left:
        aims = [run.aims for run in left]
        front = [
            run
            for run in left
            if not any(o[0] <= run.aims[0] and o[1] <= run.aims[1] and o != run.aims for o in aims)
        ]
        rank = done[-1].rank + 1 if done else 1
        done += [r._replace(rank=rank) for r in sorted(front, key=lambda r: -r.score)]
        left = [run for run in left if run not in front]
    return done
