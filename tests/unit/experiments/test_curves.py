"""Curves along training: points of kept steps, read back, averaged over targets."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.lines import add_lines, read_lines
from experiments.table2 import curves
from experiments.table2.run import Job, read_rows
from tests.helpers.table2 import write_run
from unlearn.config.compose import compose
from unlearn.config.parse import parse_config

PLAN = read_rows()


def test_every_curve_is_a_row_of_the_table() -> None:
    assert {*PLAN["curves"]} <= {*PLAN["rows"]}


def test_curves_are_means_over_targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves, "CURVES", tmp_path / "results" / "curves.csv")
    (tmp_path / "results").mkdir()
    row = PLAN["curves"][0]
    for target, unseen, retention in (("x", (0.5, 0.1), (1.0, 0.9)), ("y", (0.3, 0.1), (0.8, 0.5))):
        run = tmp_path / target
        for step, values in zip((100, 200), zip(unseen, retention, strict=True), strict=True):
            folder = run / "steps" / f"{step:06d}"
            folder.mkdir(parents=True)
            write_run(folder, "images", *values)
        add_lines(curves.CURVES, curves.points_of(Job(row, target, 0, []), run))
    points = read_lines(curves.CURVES)
    assert [p["step"] for p in points] == ["100", "200"] * 2
    assert curves.means(points, row) == [pytest.approx((0.4, 0.9)), pytest.approx((0.1, 0.7))]
    assert curves.means(points, "doco") == []
    curves.draw(points, PLAN)
    assert (tmp_path / "results" / "curves.png").stat().st_size > 1000


def test_a_run_keeps_its_weights_as_often_as_the_curve_has_points() -> None:
    row = PLAN["curves"][0]
    job = Job(row, "rabbit", 0, PLAN["rows"][row]["overrides"])
    pooled = curves.pool_job(job)
    (overrides,) = pooled.perform.args  # type: ignore[attr-defined]
    config = parse_config(compose(overrides))
    assert config.folder == pooled.run_dir
    assert config.steps // config.keep_every == curves.POINTS
