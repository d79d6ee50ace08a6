"""Optuna's study as it is made anew from run directories, and what it searches."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from tests.helpers.ranked_runs import make_run
from unlearn.config.compose import compose
from unlearn.config.parse import parse_config
from unlearn.config.search_path import conf_dir
from unlearn.sweeps.search import Search, search_space

GIVEN = [
    "method.lr=tag(log, interval(1e-5, 1e-3))", "method.strength=interval(0, 2)",
    "method.warmup_steps=int(interval(0, 9))", "method.start=base,closed_form", "seed=3",
]  # fmt: skip


def space() -> dict[str, Any]:
    return search_space(OverridesParser.create().parse_overrides(GIVEN))


def aims(params: dict[str, Any]) -> tuple[int, int]:
    """A made-up result: how many of ten images show the target, and how many are kept."""
    return round(5 * (2 - params["method.strength"])), round(9 - params["method.warmup_steps"] / 2)


def perform(search: Search, number: int, params: dict[str, Any]) -> None:
    """A run directory as a finished trial leaves it."""
    method = {key.removeprefix("method."): value for key, value in params.items()}
    make_run(search.run(number), *aims(params), method={"name": "doco", **method})


def go_on(folder: Path, trials: int, seed: int = 0) -> list[dict[str, Any]]:
    """What a call of the sweep does; returns the settings of the trials that it ran."""
    search, ran = Search(folder, space(), seed), []
    for number in range(trials):
        if params := search.recorded(number):
            search.add(number, params)
            continue
        trial = search.ask(number)
        perform(search, number, trial.params)
        search.tell(number, trial)
        ran.append(trial.params)
    return ran


def test_the_space_is_read_from_overrides() -> None:
    assert space() == {
        "method.lr": FloatDistribution(1e-5, 1e-3, log=True),
        "method.strength": FloatDistribution(0, 2),
        "method.warmup_steps": IntDistribution(0, 9),
        "method.start": CategoricalDistribution(["base", "closed_form"]),
    }


def test_a_stopped_search_proposes_what_an_unstopped_one_would(tmp_path: Path) -> None:
    """Stopped while TPE still draws at random, and after; no settings are tried twice."""
    whole = go_on(tmp_path / "whole", 16)
    parts = [p for until in (2, 5, 13, 16) for p in go_on(tmp_path / "parts", until)]
    assert parts == whole
    assert len({tuple(params.values()) for params in whole}) == 16
    assert go_on(tmp_path / "whole", 16) == []
    assert go_on(tmp_path / "other", 1, seed=1) != whole[:1]


def test_the_search_learns_from_what_is_finished(tmp_path: Path) -> None:
    """TPE's later trials lie nearer to the made-up optimum, which is one corner."""
    strengths = [params["method.strength"] for params in go_on(tmp_path, 40)]
    assert sum(strengths[-15:]) / 15 > sum(strengths[:10]) / 10 + 0.2


def test_a_trial_that_was_stopped_or_failed_keeps_its_settings(tmp_path: Path) -> None:
    search = Search(tmp_path, space(), 0)
    trial = search.ask(0)
    perform(search, 0, trial.params)
    (search.run(0) / "result.json").unlink()
    (search.run(0) / "error.txt").write_text("no space left\n")
    search.tell(0, trial)
    assert [t.state for t in search.study.trials] == [TrialState.FAIL]
    again = Search(tmp_path, space(), 7)
    assert again.ask(0, again.recorded(0)).params == trial.params
    assert again.recorded(1) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda chosen: chosen.update({"method.lr": 1.0}),
        lambda chosen: chosen.pop("method.lr"),
        lambda chosen: chosen.update({"method.start": "x"}),
    ],
)
def test_trials_of_another_space_are_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any]
) -> None:
    go_on(tmp_path, 1)
    path = tmp_path / "000" / "trial.json"
    chosen = json.loads(path.read_text())
    change(chosen)
    path.write_text(json.dumps(chosen))
    with pytest.raises(ValueError, match="holds a search of another space, whose trial 0 has"):
        go_on(tmp_path, 1)


def test_what_was_chosen_is_kept_as_it_was_chosen(tmp_path: Path) -> None:
    """A file of a group is no value of the config, and null no word."""
    given = ["method=doco,regression", "sampling_batch_size=null,8", "seed=interval(0,5)"]
    search = Search(tmp_path, search_space(OverridesParser.create().parse_overrides(given)), 0)
    for number in range(8):
        chosen = search.ask(number).params
        assert Search(tmp_path, search.space, 0).recorded(number) == chosen
        said = search.overrides(number, chosen)
        assert f"method={chosen['method']}" in said
        assert (
            f"sampling_batch_size={'null' if chosen['sampling_batch_size'] is None else 8}" in said
        )
    (search.run(0) / "trial.json").write_text("[")
    with pytest.raises(ValueError, match=r"000/trial\.json: damaged"):
        search.recorded(0)


def test_a_trial_with_nothing_to_score_stops_no_search(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search = Search(tmp_path, space(), 0)
    trial = search.ask(0)
    perform(search, 0, trial.params)
    path = search.run(0) / "images.csv"
    path.write_text(path.read_text().partition("\n")[0] + "\n")
    search.tell(0, trial)
    assert "the search learns nothing from it" in capsys.readouterr().err
    assert [t.state for t in search.study.trials] == [TrialState.FAIL]
    again = Search(tmp_path, space(), 0)
    again.add(0, trial.params)
    assert again.study.trials == []


def test_the_preset_searches_what_a_run_takes() -> None:
    """Both ends of every interval are accepted."""
    config = parse_config(compose(["sweep=pareto", "concept=panda", "logger=wandb"]))
    group = config.loggers["wandb"]["group"]
    assert (str(config.folder), group) == ("runs/panda-doco-pareto", "panda-doco-pareto")
    preset = yaml.safe_load((conf_dir() / "sweep" / "pareto.yaml").read_text())
    params = preset["hydra"]["sweeper"]["params"].items()
    searched = search_space(
        OverridesParser.create().parse_overrides([f"{k}={v}" for k, v in params])
    )
    assert len(searched) == 4
    for end in ("low", "high"):
        ends = [f"{key}={getattr(searched[key], end)}" for key in searched]
        parse_config(compose(["concept=panda", *ends]))
