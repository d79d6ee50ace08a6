"""`dry_run=true` prints the plan of a run, loads no model and writes nothing."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

from tests.helpers.bad_input import NoModel, snapshot
from tests.helpers.checkpoints import write_checkpoint
from tests.helpers.ranked_runs import RESULT
from unlearn.cli import main as cli
from unlearn.config.compose import compose
from unlearn.config.parse import parse_config
from unlearn.training.run_dir import config_text


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a cache beside it."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("UNLEARN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("unlearn.config.base_model.load_pipeline", NoModel())
    return work


def plan(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *overrides: str
) -> dict[str, str]:
    """The lines that the console script prints, by their names; it changes no file."""
    GlobalHydra.instance().clear()
    before = snapshot(Path.cwd().parent)
    monkeypatch.setattr(sys, "argv", ["unlearn", "train", *overrides, "dry_run=true"])
    cli.main()
    assert snapshot(Path.cwd().parent) == before
    said = capsys.readouterr()
    assert said.err == ""
    return {line[:8].strip(): line[8:].strip() for line in said.out.splitlines()}


def test_the_plan_of_a_run(
    work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert plan(capsys, monkeypatch, "concept=panda", "seed=3", "trainer.accelerator=cpu") == {
        "forget": "panda (instance): panda to bear",
        "model": "emoji, 32-true, on cpu",
        "method": "doco, recipe doco",
        "steps": "300 of 8 samples a device, seed 3",
        "train on": "8 prompt pairs; 128 anchor images, 128 relearn images",
        "evaluate": "88 prompts, 2 images each, base and unlearned",
        "log": "metrics.csv",
        "run_dir": "runs/panda-doco-3: begins anew",
    }


def test_the_plan_of_two_concepts_with_a_logger(
    work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = plan(capsys, monkeypatch, "concept=[panda,contrast]", "logger=wandb")
    assert facts["forget"].startswith("panda+contrast (")
    assert "panda to bear, contrast to flat" in facts["forget"]
    assert facts["log"] == "metrics.csv, wandb"
    assert facts["run_dir"] == "runs/panda+contrast-doco-0: begins anew"


def test_the_plan_says_how_far_an_earlier_call_came(
    work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = parse_config(compose(["concept=panda"]))
    (config.folder / "checkpoints").mkdir(parents=True)
    (config.folder / "config.yaml").write_text(config_text(config))
    write_checkpoint(config.folder / "checkpoints" / "last.ckpt", 12)
    given = [capsys, monkeypatch, "concept=panda"]
    assert plan(*given)["run_dir"] == "runs/panda-doco-0: goes on after step 12"
    assert plan(*given, "resume=false")["run_dir"] == "runs/panda-doco-0: begins anew"
    (config.folder / "unlearned.safetensors").touch()
    (config.folder / "result.json").write_text(json.dumps(RESULT))
    assert plan(*given)["run_dir"] == "runs/panda-doco-0: is finished already"
    with pytest.raises(SystemExit) as ended:
        plan(*given, "method.lr=1e-3")
    assert ended.value.code == 2
    assert "holds a run with method.lr=0.0001, not 0.001" in capsys.readouterr().err
