"""Several concepts by the console script, at a smoke scale, on a random diffusers folder."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors import safe_open
from safetensors.torch import load_file

from tests.helpers.console import unlearn

SETS = {"seen_target", "unseen_target", "related", "unrelated"}


@pytest.fixture(scope="module")
def smoke(random_model: Path, random_judge: Path) -> list[str]:
    return [
        f"model.pretrained={random_model}", f"evaluation.judge={random_judge}", "batch_size=2",
        "steps=3", "method.warmup_steps=2", "data.images=4", "data.relearn_images=4",
        "data.num_inference_steps=2", "evaluation.images_per_prompt=1",
        "evaluation.num_inference_steps=2",
        "method.lr=1e-3", "trainer.accelerator=cpu",
    ]  # fmt: skip


def trained(folder: Path, *overrides: str) -> str:
    done = unlearn("train", *overrides, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_a_joint_run_reports_each_concept(smoke: list[str], tmp_path: Path) -> None:
    printed = trained(tmp_path, "concept=[panda,noto]", *smoke)
    run = tmp_path / "runs" / "panda+noto-doco-0"
    result = json.loads((run / "result.json").read_text())
    assert (result["concept"], result["kind"]) == ("panda+noto", "instance+style")
    assert set(result["concepts"]) == {"panda", "noto"}
    for own in result["concepts"].values():
        assert set(own["sets"]) == SETS
        assert own["earlier"] is False
    for name in ("panda", "noto", "all"):
        assert f"\n{name}\nset " in printed  # a table of its own
    rows = list(csv.DictReader((run / "images.csv").open()))
    assert {row["concept"] for row in rows} == {"panda", "noto"}
    shown = json.loads((run / "result.json").read_text())
    assert unlearn("evaluate", str(run), cwd=tmp_path).returncode == 0
    assert json.loads((run / "result.json").read_text()) == shown


@pytest.mark.slow
def test_a_list_of_one_gives_the_bytes_of_the_single_run(smoke: list[str], tmp_path: Path) -> None:
    for name in ("concept=panda", "concept=[panda]"):
        trained(tmp_path, name, *smoke, f"run_dir={len(name)}")
    files = [path.read_bytes() for path in sorted(tmp_path.glob("*/result.json"))]
    assert files[0] == files[1]
    weights = [load_file(path) for path in tmp_path.glob("*/unlearned.safetensors")]
    assert all(torch.equal(w, weights[1][name]) for name, w in weights[0].items())


@pytest.mark.slow
def test_one_run_goes_on_from_another(smoke: list[str], tmp_path: Path) -> None:
    first = [o for o in smoke if not o.startswith(("steps=", "method."))]
    trained(
        tmp_path, "concept=panda", "method=esd", *first, "steps=2", "method.num_inference_steps=2"
    )
    trained(tmp_path, "concept=noto", "after=runs/panda-esd-0", *smoke, "keep_every=3")
    run = tmp_path / "runs" / "panda-esd-0-then-noto-doco-0"
    before = load_file(tmp_path / "runs" / "panda-esd-0" / "unlearned.safetensors")
    after = load_file(run / "unlearned.safetensors")
    assert set(before) < set(after)  # ESD-u trains what DoCo does not
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    kept = load_file(run / "steps" / "000003" / "unlearned.safetensors")
    assert all(torch.equal(after[name], weight) for name, weight in kept.items())
    assert set(kept) == set(after)
    with safe_open(run / "unlearned.safetensors", framework="pt") as file:
        assert "after_sha256" in file.metadata()
    result = json.loads((run / "result.json").read_text())
    assert {n: own["earlier"] for n, own in result["concepts"].items()} == {
        "panda": True, "noto": False
    }  # fmt: skip
    again = unlearn("train", "concept=panda", f"after={run}", *smoke, cwd=tmp_path)
    assert again.returncode == 2
    assert "[panda, panda]: forgotten twice" in again.stderr
    config = OmegaConf.load(run / "config.yaml")
    assert [s.concept.name for s in config.earlier] == ["panda"]
    other = unlearn("train", "concept=rabbit", f"after={run}", cwd=tmp_path)
    assert other.returncode == 2
    assert "it was made for the base model" in other.stderr


@pytest.mark.slow
def test_the_experiment_runs_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "experiments.several.run", "--scale", "smoke"]
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    made = []
    for _ in range(2):
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-3000:]
        for way in ("alone | 1", "joint | 2", "sequential | 2", "merged | 2"):
            assert f"| {way} |" in done.stdout
        results = tmp_path / "runs" / "several-smoke" / "results"
        made.append({path: path.stat().st_mtime_ns for path in results.rglob("rows/*.csv")})
    assert made[0] == made[1]
    assert len(made[0]) == 5
    assert (results / "curve.png").exists()
