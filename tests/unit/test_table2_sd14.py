"""Table 2 on Stable Diffusion 1.4: its plan, its runs on several GPUs, and published cells."""

from __future__ import annotations

import csv
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra.errors import HydraException

from experiments.table2 import sd14
from experiments.table2.published import HERE, read_published, render
from experiments.table2.run import Job, jobs_of
from experiments.table2.sd14 import (
    Call,
    check_jobs,
    commands_of,
    folder_of,
    kind_of,
    overrides_of,
    protocol_of,
    read_plan,
    run_all,
    visible,
)
from unlearn.config import compose
from unlearn.evaluation.protocol import read_protocol

PLAN = read_plan()
SNOOPY = """
| method | Snoopy CS/CER | Mickey FID | Spongebob FID | Pikachu FID | Dog FID | Legislator FID | COCO FID |
| ESD | 44.50 / 77.62 | 129.07 | 113.90 | 72.18 | 45.94 | 55.18 | 13.68 |
| Concept Ablation | 59.81 / 5.50 | 110.85 | 79.49 | 71.22 | 96.36 | 55.74 | 15.42 |
| Selective Amnesia | 64.59 / 0.25 | 53.64 | 57.65 | 42.95 | 75.72 | 47.42 | 16.84 |
| SPM | 55.48 / 20.12 | 28.39 | 30.75 | 18.61 | 10.11 | 7.40 | 13.24 |
"""  # noqa: E501
VAN_GOGH = """
| method | Van Gogh CS | Picasso FID | Rembrandt FID | Warhol FID | Caravaggio FID | COCO FID |
| SLD | 54.60 | 70.49 | 123.82 | 89.03 | 120.59 | 17.55 |
| ESD | 50.64 | 94.88 | 93.35 | 124.43 | 90.54 | 13.96 |
| Concept Ablation | 54.60 | 95.93 | 87.54 | 101.18 | 91.22 | 13.91 |
| Selective Amnesia | 60.84 | 104.11 | 161.85 | 119.27 | 141.19 | 30.53 |
| SPM | 51.80 | 35.39 | 56.12 | 60.71 | 62.20 | 13.22 |
"""
SD14 = """
| method | Snoopy CS/CER | Mickey CS/CER | Spongebob CS/CER | Pikachu CS/CER | Dog CS/CER | Legislator CS/CER | Van Gogh CS | Picasso CS | Rembrandt CS | Warhol CS | Caravaggio CS | COCO FID |
| SD 1.4 | 74.43 / 0.62 | 71.94 / 2.50 | 72.99 / 0.62 | 72.60 / 0.88 | 63.73 / 0.88 | 57.64 / 8.88 | 74.01 | 70.16 | 71.57 | 71.56 | 74.05 | 13.24 |
"""  # noqa: E501
METRICS = {"CS": "clip_score", "CER": "clip_error_rate", "FID": "fid"}


def cells(text: str, erased: str) -> set[tuple[str, str, str, str, str]]:
    """A published table as method, erased, concept, metric and value."""
    lines = [[c.strip() for c in line.strip("|").split("|")] for line in text.strip().splitlines()]
    found = set()
    for method, *values in lines[1:]:
        for column, value in zip(lines[0][1:], values, strict=True):
            concept, _, metrics = column.rpartition(" ")
            concept = {"Warhol": "Andy Warhol", "COCO": "COCO-30k"}.get(concept, concept)
            for metric, number in zip(metrics.split("/"), value.split(" / "), strict=True):
                name = "fid_reference" if concept == "COCO-30k" else METRICS[metric]
                found.add((method, erased, concept, name, number))
    return found


def test_the_published_cells_are_the_papers_and_no_others() -> None:
    with (HERE / "published.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    entered = [(r["method"], r["erased"], r["concept"], r["metric"], r["value"]) for r in rows]
    expected = cells(SD14, "") | cells(SNOOPY, "snoopy") | cells(VAN_GOGH, "van_gogh")
    assert set(entered) == expected
    assert len(entered) == len(expected) == 80
    assert all("arXiv 2312.16145" in row["source"] for row in rows)
    assert not any("DoCo" in row["method"] for row in rows)


def test_published_names_are_the_plan_s_and_the_protocols_own() -> None:
    labels = {entry["label"] for entry in PLAN["rows"].values()}
    own = {figure.label for figure in read_published(PLAN)} & labels
    assert own == {"ESD", "Concept Ablation", "SPM", "SLD-Strong"}
    concepts = {
        c for p in PLAN["protocols"].values()
        for c in compose([f"evaluation={p['name']}"], "evaluate").evaluation.concepts
    }  # fmt: skip
    assert {figure.concept for figure in read_published(PLAN)} == concepts | {"COCO-30k"}


@pytest.mark.parametrize("overrides", [[], [sd14.RANDOM]])
def test_every_row_and_protocol_is_accepted(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    call = Call(Path("runs"), overrides, 1 if overrides else None)
    jobs = jobs_of(PLAN, "sd14", list(PLAN["rows"]))
    check_jobs(jobs, PLAN, call)
    for target in PLAN["targets"]:
        chosen = protocol_of(Job("uce", target, 0, ["method=uce"]), PLAN, call)
        protocol = read_protocol(compose(chosen, "evaluate").evaluation, target)
        assert protocol.name == {"instance": "spm_general", "style": "spm_artists"}[kind_of(target)]
        assert protocol.limit == call.limit
        assert protocol.clip == ("emoji" if overrides else "openai/clip-vit-base-patch32")
    assert len({job.name for job in jobs}) == len(jobs) == 7 * 15 + 2 * 6


def test_what_no_run_takes_is_refused_at_once(tmp_path: Path) -> None:
    jobs = jobs_of(PLAN, "sd14", ["doco"])
    for override, error in (("steps=many", ValueError), ("protocol.stepz=1", HydraException)):
        with pytest.raises(error):
            check_jobs(jobs, PLAN, Call(tmp_path, [override]))


def test_the_command_line_wins_over_the_small_sizes() -> None:
    job = jobs_of(PLAN, "sd14", ["doco"])[0]
    call = Call(Path("runs"), [sd14.RANDOM, "model.width=0.25", "protocol.images=7"])
    config = sd14.config_of(job, PLAN, call)
    assert (config.model.width, config.model.image_size) == (0.25, 64)
    assert (config.steps, config.method.warm_up, config.seed) == (4, 2, 0)
    closed = jobs_of(PLAN, "sd14", ["uce"])[0]
    assert not any(o.startswith("steps=") for o in overrides_of(closed, PLAN, call))


def test_limits_keep_the_first_targets() -> None:
    plan = read_plan(1)
    assert plan["targets"] == plan["ablation_targets"] == ["snoopy"]
    assert {kind_of(t) for t in read_plan(2)["targets"]} == {"instance", "style"}


def test_other_settings_have_a_folder_of_their_own() -> None:
    assert folder_of([], None) == Path("runs/table2-sd14")
    folders = [folder_of([], 1), folder_of([sd14.RANDOM], 1), folder_of([sd14.RANDOM], None)]
    assert len({*folders, folder_of([], None)}) == 4
    assert folder_of(["a=1", "b=2"], None) == folder_of(["b=2", "a=1"], None)


def test_what_has_ended_is_not_run_again(tmp_path: Path) -> None:
    job, call = jobs_of(PLAN, "sd14", ["uce"])[0], Call(tmp_path, ["protocol.inception=w.pth"])
    train, evaluate = commands_of(job, PLAN, call)
    assert train[:2] == ["train", "concept=snoopy"]
    assert f"run_dir={tmp_path}/uce-snoopy-0" in train
    assert not any("inception" in o for o in train)
    run = tmp_path / "uce-snoopy-0"
    chosen = ["evaluation=spm_general", "evaluation.inception=w.pth"]
    assert evaluate == ["evaluate", str(run), *chosen]
    (run / "evaluation").mkdir(parents=True)
    (run / "result.json").touch()
    assert commands_of(job, PLAN, call) == [evaluate]
    (run / "evaluation" / "spm_general.json").touch()
    assert commands_of(job, PLAN, call) == []


STUB = """#!{python}
import json, os, pathlib, sys, time
arguments = sys.argv[3:]
begin = time.time()
time.sleep(0.3)
run = [a for a in arguments if "uce-" in a][0].split("=")[-1]
if "rembrandt" in run and not os.environ.get("WHOLE"):
    sys.exit("no memory left")
name = "evaluation/" + {{"train": ".."}}.get(arguments[0], arguments[2].split("=")[-1])
path = pathlib.Path(run, "result.json" if arguments[0] == "train" else name + ".json")
path.parent.mkdir(parents=True, exist_ok=True)
path.write_text(json.dumps([os.environ["CUDA_VISIBLE_DEVICES"], begin, time.time()]))
"""


def test_runs_share_the_gpus_and_failures_stop_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = tmp_path / "unlearn"
    stub.write_text(STUB.format(python=sys.executable))
    stub.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(stub))
    jobs, call = jobs_of(PLAN, "sd14", ["uce"]), Call(tmp_path / "runs", [])
    failed = run_all(jobs, PLAN, call, ["3", "5"])
    assert [line.partition(" (")[0] for line in failed] == ["uce-rembrandt-0: no memory left"]
    spans: dict[str, list[tuple[float, float]]] = {}
    for path in [*call.folder.rglob("result.json"), *call.folder.rglob("spm_*.json")]:
        device, begin, end = json.loads(path.read_text())
        spans.setdefault(device, []).append((begin, end))
    assert {device: len(own) for device, own in spans.items()}.keys() == {"3", "5"}
    assert sum(map(len, spans.values())) == 2 * 6
    for own in spans.values():  # one run at a time on a GPU
        own.sort()
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(own))
    assert max(o[0][0] for o in spans.values()) < min(o[0][1] for o in spans.values())  # at once
    monkeypatch.setenv("WHOLE", "1")
    before = {p: p.stat().st_mtime_ns for p in call.folder.rglob("result.json")}
    assert run_all(jobs, PLAN, call, ["3", "5"]) == []
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert len(list(call.folder.rglob("spm_*.json"))) == 7


def test_the_gpus_that_are_visible_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible(2) == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6,7")
    assert visible(2) == ["4", "6"]
    for count in (0, 4):
        with pytest.raises(ValueError, match=f"--devices={count}: from 1 to 3"):
            visible(count)


def number(value: float, spread: float | None = None) -> dict[str, Any]:
    low, high = (None, None) if spread is None else (value - spread, value + spread)
    return {"value": value, "low": low, "high": high, "n": 800}


def write_result(runs: Path, name: str, base: str = "sd", features: str = "CLIP") -> None:
    """A result of spm_general: of two concepts, one of them Snoopy."""
    snoopy = {
        "clip_score": (number(74.5, 1), number(50.25, 2)),
        "clip_error_rate": (number(0.01), number(0.4, 0.05)),
    }
    mickey = {
        "clip_score": (number(72), number(71)),
        "fid": (None, number(33.5, 1.5)),
        "kid": (None, number(0.0125, 0.001)),
    }
    result = {
        "base": base, "clip": "ViT-B/32", "features": features, "warnings": ["few images"],
        "cells": [
            {"concept": concept, "metric": metric, "base": sides[0], "unlearned": sides[1]}
            for concept, metrics in (("Mickey", mickey), ("Snoopy", snoopy))
            for metric, sides in metrics.items()
        ],
    }  # fmt: skip
    folder = runs / name / "evaluation"
    folder.mkdir(parents=True)
    (folder / "spm_general.json").write_text(json.dumps(result))


def rows_of(text: str) -> dict[str, dict[str, str]]:
    """The table's cells by method and column."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    head, _, *body = ([cell.strip() for cell in line] for line in lines)
    return {line[0]: dict(zip(head, line, strict=False)) for line in body}


def test_our_figures_stand_beside_the_published_ones(tmp_path: Path) -> None:
    for row in ("esd", "uce"):
        write_result(tmp_path, f"{row}-snoopy-0", features="Inception v3 (torch-fidelity)")
    text = render(tmp_path, PLAN).read_text()
    assert "Random weights" not in text
    assert "- few images" in text
    assert "- CLIP: ViT-B/32; KID and FID on Inception v3" in text
    assert [line for line in text.splitlines() if line.startswith("## ")] == ["## Snoopy erased"]
    rows = rows_of(text)
    assert list(rows)[:3] == ["SD 1.4", "ESD", "UCE"]
    assert rows["SD 1.4"]["Snoopy CS"] == "74.50 [73.50, 75.50] (74.43)"
    assert rows["ESD"]["Snoopy CS"] == "50.25 [48.25, 52.25] (44.50)"
    assert rows["ESD"]["Snoopy CER %"] == "40.00 [35.00, 45.00] (77.62)"
    assert rows["ESD"]["Mickey FID"] == "33.50 [32.00, 35.00] (129.07)"
    assert rows["ESD"]["COCO-30k FID to photographs"] == "(13.68)"
    assert rows["UCE"]["Mickey FID"] == "33.50 [32.00, 35.00]"
    assert rows["UCE"]["Mickey KID"] == "0.0125 [0.0115, 0.0135]"
    assert rows["Selective Amnesia"]["Snoopy CS"] == "(64.59)"
    assert "Mickey CS" not in rows["UCE"]
    with (tmp_path / "results" / "published.csv").open() as file:
        figures = list(csv.DictReader(file))
    assert sum(f["of"] == "published" for f in figures) == 80
    ours = [f for f in figures if f["of"] == "ours" and f["metric"] == "clip_score"]
    assert [(f["label"], f["concept"]) for f in ours].count(("SD 1.4", "Mickey")) == 1


def test_a_fid_on_other_features_is_not_set_beside_published_ones(tmp_path: Path) -> None:
    write_result(tmp_path, "esd-snoopy-0", features="CLIP")
    rows = rows_of(render(tmp_path, PLAN).read_text())
    assert rows["ESD"]["Mickey FID"] == "(129.07)"
    assert "fid on CLIP" in (tmp_path / "results" / "published.csv").read_text()


def test_several_seeds_are_averaged_and_random_weights_are_announced(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_result(tmp_path, f"uce-snoopy-{seed}", base="random:sd")
    text = render(tmp_path, PLAN).read_text()
    assert "**Random weights: these figures show that the path runs" in text
    assert rows_of(text)["UCE"]["Snoopy CS"] == "50.25"


@pytest.mark.slow
def test_every_method_goes_the_whole_way_on_random_weights(tmp_path: Path) -> None:
    rows = [
        "doco", "reference", "regression", "concept_ablation", "esd", "uce", "spm",
        "forget_me_not", "salun", "negative_prompt", "sld",
    ]  # fmt: skip
    command = [sys.executable, "-m", "experiments.table2.sd14", "--limit", "1", "--devices", "2"]
    done = subprocess.run(
        [*command, "--rows", ",".join(rows), sd14.RANDOM], cwd=tmp_path, text=True,
        capture_output=True, env={**os.environ, "PYTHONPATH": str(HERE.parents[1])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    table = rows_of(done.stdout)
    for row in rows:
        assert float(table[PLAN["rows"][row]["label"]]["Snoopy CS"].split()[0]) >= 0
    assert table["SPM"]["Snoopy CS"].endswith("(55.48)")
    assert "Random weights" in done.stdout
