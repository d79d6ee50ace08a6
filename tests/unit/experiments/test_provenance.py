"""Where kept results come from: every kept file has a line, and a run's line has its facts."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from experiments.lines import read_lines
from experiments.provenance import (
    COLUMNS,
    FACTS,
    FILE,
    NOT_RECORDED,
    config_hash,
    keep_provenance,
)
from experiments.table2 import run as table2_run
from unlearn.config.compose import compose
from unlearn.config.parse import parse_config
from unlearn.training.environment import write_environment

EXPERIMENTS = Path(__file__).parents[3] / "experiments"
KEPT = {
    "table2/results": ["rows/*.csv", "curves.csv"],
    "table2/tuning": ["outcome.csv"],
    "several/results": ["rows/*.csv"],
    "bench/results": ["*.json"],
}


@pytest.mark.parametrize("name", KEPT)
def test_every_kept_result_has_a_line(name: str) -> None:
    folder = EXPERIMENTS / name
    lines = read_lines(folder / FILE)
    assert list(lines[0]) == COLUMNS
    assert all(line[fact] for line in lines for fact in FACTS)
    assert all(line["file commit"] or line["date"] != NOT_RECORDED for line in lines)
    files = {str(p.relative_to(folder)) for pattern in KEPT[name] for p in folder.glob(pattern)}
    assert {line["result"].partition(": ")[0] for line in lines} == files


def test_a_line_has_the_facts_of_the_run_and_takes_the_place_of_the_earlier(tmp_path: Path) -> None:
    run, results = tmp_path / "run", tmp_path / "results"
    run.mkdir()
    results.mkdir()
    keep_provenance(results, "rows/a.csv", run)
    first = read_lines(results / FILE)
    assert first == [
        {"result": "rows/a.csv", **dict.fromkeys(FACTS, NOT_RECORDED), COLUMNS[-1]: ""}
    ]
    write_environment(SimpleNamespace(folder=run, device="cpu", precision="fp32"))  # type: ignore[arg-type]
    facts = json.loads((run / "environment.json").read_text())
    facts |= {"commit": "abc", "uncommitted changes": True, "processor": "some"}
    (run / "environment.json").write_text(json.dumps(facts))
    (run / "config.yaml").write_text(yaml.safe_dump({"seed": 0, "run_dir": "a"}))
    keep_provenance(results, "rows/a.csv", run)
    (line,) = read_lines(results / FILE)
    assert (line["commit"], line["precision"], line["date"]) == (
        "abc with changes", "fp32", facts["date"],
    )  # fmt: skip
    assert line["config"] == config_hash({"seed": 0, "run_dir": "elsewhere"})
    assert line["config"] != config_hash({"seed": 1})


def test_a_kept_run_of_another_configuration_is_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table2_run, "results_of", lambda scale: tmp_path)
    jobs = [table2_run.Job("uce", "rabbit", seed, ["method=uce"]) for seed in (0, 1, 2)]
    for job, other in zip(jobs, ([], ["method.edits=names"]), strict=False):
        run = tmp_path / job.name
        run.mkdir()
        own = table2_run.overrides_of(job, "emoji", Path("elsewhere"))
        saved = parse_config(compose([*own, *other, "trainer.accelerator=cpu"])).saved
        (run / "config.yaml").write_text(yaml.safe_dump(saved))
        keep_provenance(tmp_path, f"rows/{job.name}.csv", run)
    assert table2_run.stale_jobs(jobs, "emoji") == ["uce-rabbit-1"]  # the third was not recorded
