"""The ranking of runs by hand, what the report shows of made-up run directories, the axes."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from tests.helpers.ranked_runs import images, make_run
from unlearn.evaluation.score import SCORE_COLUMNS, forget_keep_score
from unlearn.reports.comparison import differing_keys
from unlearn.reports.ranking import rank_runs, read_ranked_runs, run_folders
from unlearn.reports.sweep import report_sweep
from unlearn.reports.sweep_plots import Axis, draw_pareto


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Four finished runs, one that failed, one that was stopped, kept weights inside of one."""
    for name, unseen, kept, lr in (
        ("a", 1, 9, 1e-5),
        ("b", 0, 5, 1e-4),
        ("c", 1, 8, 1e-3),  # under a
        ("d", 5, 5, 1e-2),  # under a, b and c
    ):
        method = {"name": "doco", "lr": lr, "strength": 1.0}
        make_run(tmp_path / name, unseen, kept, method=method, run_dir=name)
    make_run(tmp_path / "a" / "steps" / "000002", 9, 9)
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "error.txt").write_text("method.lr: no number\n\noverrides: method.lr=x\n")
    make_run(tmp_path / "f", 0, 9, seed=1)
    (tmp_path / "f" / "result.json").unlink()
    return tmp_path


def test_runs_are_ranked_by_front_then_by_score(sweep: Path) -> None:
    runs, failed = read_ranked_runs(list(run_folders(sweep)))
    assert [(run.folder.name, run.rank) for run in runs] == [("a", 1), ("b", 1), ("c", 2), ("d", 3)]
    assert [run.score for run in runs] == [
        pytest.approx(2 / (1 / gone + 1 / kept))
        for gone, kept in ((0.9, 0.9), (1.0, 0.5), (0.9, 0.8), (0.5, 0.5))
    ]
    assert {folder.name: reason for folder, reason in failed.items()} == {
        "e": "method.lr: no number",
        "f": "not finished",
    }


def test_a_job_that_was_refused_beside_a_finished_run_hides_it_not(sweep: Path) -> None:
    (sweep / "a" / "error.txt").write_text("run_dir=a: holds a run with seed=0, not 1\n")
    runs, failed = read_ranked_runs(list(run_folders(sweep)))
    assert runs[0].folder.name == "a"
    assert failed[sweep / "a"] == "run_dir=a: holds a run with seed=0, not 1"


def test_the_front_is_what_no_run_dominates(sweep: Path) -> None:
    """Against the definition, on all runs and on each pair of them; order does not matter."""
    runs, _ = read_ranked_runs(list(run_folders(sweep)))
    for chosen in (runs, *([a, b] for a in runs for b in runs if a != b)):
        again = rank_runs(list(reversed(chosen)))
        assert {r.folder for r in again} == {r.folder for r in chosen}
        for run in again:
            dominated = any(
                all(o <= m for o, m in zip(other.aims, run.aims, strict=True))
                and other.aims != run.aims
                for other in chosen
            )
            assert (run.rank == 1) == (not dominated)


def test_each_concept_has_a_front_of_its_own(sweep: Path) -> None:
    make_run(sweep / "g", 9, 1, concept={"name": "fox"})  # worse than any run of the panda
    make_run(sweep / "h", 9, 0, concept={"name": "fox"})
    runs, _ = read_ranked_runs(list(run_folders(sweep)))
    assert [(run.folder.name, run.concept, run.rank) for run in runs] == [
        ("g", "fox", 1), ("h", "fox", 2),
        ("a", "panda", 1), ("b", "panda", 1), ("c", "panda", 2), ("d", "panda", 3),
    ]  # fmt: skip
    draw_pareto(sweep / "pareto.png", runs)
    assert (sweep / "pareto.png").stat().st_size


def test_columns_are_the_settings_that_differ(sweep: Path) -> None:
    runs, _ = read_ranked_runs(list(run_folders(sweep)))
    assert differing_keys(runs) == ["method.lr"]
    other = make_run(sweep / "g", 2, 2, method={"name": "uce", "edits": "names"}, steps=0)
    runs, _ = read_ranked_runs([*run_folders(sweep)])
    assert other in [run.folder for run in runs]
    assert differing_keys(runs) == [
        "method.lr",
        "method.name",
    ]  # what one run alone has is not compared


def test_the_report_s_files(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report_sweep([sweep])
    text = (sweep / "sweep.md").read_text()
    assert "| rank | run | method.lr | unseen target |" in text
    assert f"| 1 | {sweep / 'a'} | 1e-05 | 10% [2%, 40%] |" in text
    assert "2 failed or not finished:" in text
    assert f"- {sweep / 'e'}: method.lr: no number" in text
    assert f"- {sweep / 'f'}: not finished" in text
    assert "000002" not in text
    assert capsys.readouterr().out.startswith("| rank |")
    with (sweep / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [Path(row["run"]).name for row in rows] == list("abcdef")
    assert float(rows[0]["retention"]) == 0.9
    assert float(rows[0]["retention low"]) < 0.9 < float(rows[0]["retention high"])
    assert rows[4]["error"] == "method.lr: no number"
    assert {f"{column} high" for column in SCORE_COLUMNS} <= rows[0].keys()
    report_sweep([sweep / "a", sweep / "b"])
    assert (sweep / "sweep.md").read_text().count(str(sweep)) == 2
    with pytest.raises(ValueError, match="steps/none: no such folder"):
        report_sweep([sweep / "steps" / "none"])
    (sweep / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: no run directory in it"):
        report_sweep([sweep / "empty"])


def test_what_the_judge_cannot_tell_broken_is_scored_all_the_same() -> None:
    rows = [row | {"unlearned_broken": ""} for row in images(1, 9)]
    assert forget_keep_score(rows) == forget_keep_score(images(1, 9)) > 0
    with pytest.raises(ValueError, match="nothing to score"):
        forget_keep_score([row | {"counts": "0"} for row in rows])


def test_axes_of_numbers_names_and_both() -> None:
    axis = Axis([1e-5, None, 1e-3])
    assert axis.log
    assert axis.place(1e-4) == pytest.approx(0.5)
    assert axis.place(None) != axis.place(None)
    assert Axis([0, 5, 100]).place(5) == 0.05
    assert Axis([2, 2]).labels() == [(0.5, "2")]
    assert Axis([True, False, "auto"]).labels() == [(0, "False"), (0.5, "True"), (1, "auto")]
