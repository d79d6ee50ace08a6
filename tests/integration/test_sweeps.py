"""Sweeps by the console script: launchers, failed jobs, a search that is killed and goes on."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from omegaconf import OmegaConf

from tests.helpers.console import SCRIPT, unlearn
from tests.helpers.wandb_files import values_of, wandb_records

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
LAUNCHERS = {
    "basic": [],
    "pool": ["hydra.launcher.workers=2"],
    "joblib": ["hydra.launcher.n_jobs=2"],
    "submitit_local": ["hydra.launcher.timeout_min=5"],
    "ray": ["+hydra.launcher.ray.init.num_cpus=2"],
}
EMBEDDED = [  # the embedded model, which obeys prompts, so that there is something to score
    "concept=panda", "steps=4", "batch_size=2", "data.images=4",
        "data.relearn_images=4",
    "data.num_inference_steps=2", "evaluation.images_per_prompt=1",
        "evaluation.num_inference_steps=2",
    "trainer.accelerator=cpu",
]  # fmt: skip


@pytest.fixture(scope="module")
def smoke(random_model: Path) -> list[str]:
    return [
        "concept=panda", f"model.pretrained={random_model}", "steps=3", "method.warmup_steps=1",
        "batch_size=2", "data.images=4",
        "data.relearn_images=4", "data.num_inference_steps=2",
        "evaluation.images_per_prompt=1",
        "evaluation.num_inference_steps=2", "trainer.accelerator=cpu",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "launcher",
    [
        "basic",
        pytest.param("pool", marks=pytest.mark.slow),
        pytest.param("joblib", marks=pytest.mark.slow),
        pytest.param("submitit_local", marks=pytest.mark.slow),
        pytest.param(
            "ray",
            marks=[
                pytest.mark.slow,
                pytest.mark.skipif(
                    importlib.util.find_spec("ray") is None, reason="the extra `ray` is missing"
                ),
            ],
        ),
    ],
)
def test_a_failing_job_is_kept_and_stops_no_other(
    smoke: list[str], random_judge: Path, tmp_path: Path, launcher: str
) -> None:
    """The first of two jobs fails; the next call skips what is finished and tries it again."""
    call = [
        "train", "-m", *smoke, f"evaluation.judge={tmp_path / 'late'},{random_judge}",
        f"hydra/launcher={launcher}", *LAUNCHERS[launcher], "run_dir=runs/${hydra:job.num}",
    ]  # fmt: skip
    done = unlearn(*call, cwd=tmp_path)
    assert done.returncode == 1, done.stderr[-3000:]
    runs = [tmp_path / "runs" / number for number in "01"]
    reason = f"evaluation.judge='{tmp_path / 'late'}': no model.safetensors"
    assert "1 of 2 jobs failed; the same command tries them again" in done.stderr
    assert f"  runs/0: {reason}" in done.stderr
    lines = (runs[0] / "error.txt").read_text().splitlines()
    assert lines[0].startswith(reason)
    assert f"evaluation.judge={tmp_path / 'late'}" in lines[2]
    assert lines[-1].startswith("ValueError: ")
    assert not (runs[1] / "error.txt").exists()
    result = runs[1] / "result.json"
    before = result.stat().st_mtime_ns

    shutil.copytree(random_judge, tmp_path / "late")
    done = unlearn(*call, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert result.stat().st_mtime_ns == before
    assert (runs[0] / "result.json").exists()
    assert not (runs[0] / "error.txt").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["seed=0,1", "trainer.devices=2"], "trainer.devices=2, trainer.strategy='auto': in a"),
        (["steps=3,4"], "run_dir=runs/panda-doco-0: two jobs of the sweep have it"),
        (["method.lr=interval(1,2)", "hydra.sweeper.trials=0"], "hydra.sweeper.trials=0: at least"),
        (["hydra/launcher=pool", "hydra.launcher.workers=0"], "hydra.launcher.workers=0: at least"),
        (["hydra.sweeper.jobs=no.yaml"], "hydra.sweeper.jobs='no.yaml': [Errno 2] No such file"),
        (
            [f"hydra.sweeper.jobs='{EXPERIMENTS / 'wandb_sweep.yaml'}'"],
            "wandb_sweep.yaml': a list of lists of overrides is needed",
        ),
    ],
)
def test_what_cannot_be_a_sweep_is_refused_before_its_first_job(
    smoke: list[str], tmp_path: Path, overrides: list[str], message: str
) -> None:
    done = unlearn("train", "-m", *smoke, *overrides, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_jobs_of_a_file_run_beside_the_overrides_given(smoke: list[str], tmp_path: Path) -> None:
    jobs = [["steps=2", "seed=3,4"], ["concept=rabbit", "anchor=cat"]]
    (tmp_path / "jobs.yaml").write_text(json.dumps(jobs))
    call = ["train", "-m", *smoke, "evaluation.judge=none", "hydra.sweeper.jobs=jobs.yaml"]
    done = unlearn(*call, "hydra.sweeper.max_batch_size=2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    found = {}
    for path in sorted(tmp_path.glob("runs/*/config.yaml")):
        config = OmegaConf.load(path)
        found[path.parent.name] = (config.steps, config.seed, config.anchor.name)
    assert found == {
        "panda-doco-3": (2, 3, "bear"), "panda-doco-4": (2, 4, "bear"),
        "rabbit-doco-0": (3, 0, "cat"),
    }  # fmt: skip
    searched = unlearn(*call, "method.lr=interval(1,2)", cwd=tmp_path)
    assert searched.returncode == 2
    assert "hydra.sweeper.jobs='jobs.yaml': a search takes none" in searched.stderr


@pytest.mark.slow
def test_a_job_whose_process_dies_stops_no_other(smoke: list[str], tmp_path: Path) -> None:
    call = [
        SCRIPT, "train", "-m", *smoke, "evaluation.judge=none", "seed=0,1", "hydra/launcher=pool",
        "hydra.launcher.workers=1", "run_dir=runs/${hydra:job.num}",
    ]  # fmt: skip
    runs = [tmp_path / "runs" / number for number in "01"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(call, cwd=tmp_path, stdout=log, stderr=log)
        while not (runs[0] / "log.txt").exists():
            assert process.poll() is None, (tmp_path / "log").read_text()[-3000:]
            time.sleep(0.05)
        (worker,) = (
            child
            for child in psutil.Process(process.pid).children()
            if "spawn_main" in " ".join(child.cmdline())
        )
        worker.kill()
        assert process.wait() == 1
    reason = "its process died (out of memory?): runs/0"
    assert (runs[0] / "error.txt").read_text().startswith(f"{reason}\n\noverrides: ")
    assert f"  runs/0: {reason}\n" in (tmp_path / "log").read_text()
    assert (runs[1] / "unlearned.safetensors").exists()
    assert "steps" in (runs[1] / "log.txt").read_text()
    log = (tmp_path / "log").read_text()
    assert re.search(r"^1: .* [01]/2 ", log.replace("\r", "\n"), re.MULTILINE)  # the bar names it
    assert "\nruns/1: Not judged\nSee more: unlearn sweep-report runs\n" in log


@pytest.mark.slow
def test_a_search_that_is_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    """Killed in trial 1 of 3: trial 0 is not run again, and trial 1 keeps its settings."""
    call = [
        SCRIPT, "train", "sweep=pareto", *EMBEDDED, "method.warmup_steps=int(interval(0, 2))",
        "run_dir=search", "hydra.sweeper.trials=3",
    ]  # fmt: skip
    runs = [tmp_path / "search" / number for number in ("000", "001", "002")]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(call, cwd=tmp_path, stdout=log, stderr=log)
        while not (runs[1] / "config.yaml").exists():
            assert process.poll() is None, (tmp_path / "log").read_text()[-3000:]
            time.sleep(0.05)
        process.kill()
        process.wait()
    settings = (runs[1] / "config.yaml").read_text()
    finished = (runs[0] / "result.json").stat().st_mtime_ns

    done = unlearn(*call[1:], cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (runs[0] / "result.json").stat().st_mtime_ns == finished
    assert (runs[1] / "config.yaml").read_text() == settings
    methods = [OmegaConf.load(run / "config.yaml").method for run in runs]
    for key in ("strength", "lr", "discriminator_lr"):
        assert len({method[key] for method in methods}) == 3
    table = (tmp_path / "search" / "sweep.md").read_text()
    for run in runs:
        assert f"| search/{run.name} |" in table
    for name in ("pareto.png", "parallel.png"):
        assert (tmp_path / "search" / name).stat().st_size > 10_000
    again = unlearn(*call[1:], cwd=tmp_path)
    assert "Launching" not in again.stdout
    other = unlearn(*call[1:], "seed=1", cwd=tmp_path)
    assert other.returncode == 2
    assert "holds a run with seed=0, not 1" in other.stderr


@pytest.mark.slow
def test_what_a_wandb_agent_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command that W&B's own agent makes of our sweep file, run for real, offline."""
    from wandb.sdk.launch.sweeps.utils import load_sweep_config
    from wandb.wandb_agent import Agent

    monkeypatch.chdir(tmp_path)
    for name, value in {
        "PATH": f"{SCRIPT.parent}{os.pathsep}{os.environ['PATH']}", "WANDB_MODE": "offline",
        "WANDB_DIR": str(tmp_path), "WANDB_RUN_ID": "", "WANDB_SWEEP_PARAM_PATH": "",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    config = load_sweep_config(str(EXPERIMENTS / "wandb_sweep.yaml"))
    values = {key: {"value": space["min"]} for key, space in config["parameters"].items()}
    agent = Agent(api=None, queue=None)
    tiny = [o for o in EMBEDDED if not o.startswith("concept=")]
    agent._sweep_command = [*config["command"], *tiny]
    agent._command_run({"program": config["program"], "args": values, "run_id": "abc123"})
    assert agent._run_processes["abc123"].wait() == 0
    run = tmp_path / "runs" / "wandb" / "abc123"
    method = OmegaConf.load(run / "config.yaml").method
    assert {key: {"value": method[key.removeprefix("method.")]} for key in values} == values
    (file,) = run.glob("wandb/offline-run-*-abc123/run-abc123.wandb")
    summary: dict[str, Any] = {}
    for record in wandb_records(file):
        if record.WhichOneof("record_type") == "summary":
            summary |= values_of(record.summary.update)
    assert 0 <= summary[config["metric"]["name"]] <= 1
