"""Table 2's runner as a process: runs side by side, what fails is named, what is there stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import psutil
import pytest
import torch

from experiments.table2.run import jobs_of, overrides_of, read_rows
from unlearn.sweeps.jobs import train_overrides
from unlearn.sweeps.pool import PoolJob, run_jobs
from unlearn.utils.errors import NotFiniteError

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_smoke_scale_renders_the_table_and_runs_nothing_twice(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "experiments.table2.run", "--scale", "smoke"]
    command += ["--rows", "doco,uce,sld"]
    for expected in (0, 3):
        done = subprocess.run(
            command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True, text=True, timeout=600, check=True,
        )  # fmt: skip
        assert f"{expected} of 3 runs are kept" in done.stdout
        assert "| DoCo | 1 |" in done.stdout
        assert "| SLD | 1 |" in done.stdout
    results = tmp_path / "runs" / "table2-smoke" / "results"
    assert sorted(p.stem for p in (results / "rows").iterdir()) == [
        "doco-rabbit-0", "sld-rabbit-0", "uce-rabbit-0",
    ]  # fmt: skip
    assert (results / "contact.webp").stat().st_size > 1000


@pytest.mark.slow
def test_a_run_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    jobs = jobs_of(read_rows(), "smoke", ["uce", "negative_prompt"])
    own = {job.name: overrides_of(job, "smoke", tmp_path) for job in jobs}
    own["uce-rabbit-0"].append("method.regularization=0.0")
    pooled = {n: PoolJob(tmp_path / n, partial(train_overrides, o)) for n, o in own.items()}
    finished: list[str] = []
    errors = run_jobs(pooled, lambda name, run: finished.append(name), workers=2)
    assert finished == ["negative_prompt-rabbit-0"]
    assert [*errors] == ["uce-rabbit-0"]
    reason = "method.regularization=0.0: a finite number of more than 0 and at most "
    assert errors["uce-rabbit-0"].startswith(reason)
    assert "images" in (tmp_path / "negative_prompt-rabbit-0" / "log.txt").read_text()


def killed(run: Path) -> Path:
    """A run that the kernel kills where its name says so."""
    if run.name == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    print(torch.get_num_threads())
    return run


@pytest.mark.slow
def test_a_run_that_is_killed_does_not_stop_the_others(tmp_path: Path) -> None:
    names = ["killed", "a", "b", "c"]
    jobs = {name: PoolJob(tmp_path / name, partial(killed, tmp_path / name)) for name in names}
    finished: list[str] = []
    variables = dict(os.environ)
    errors = run_jobs(jobs, lambda name, run: finished.append(name), workers=2)
    assert dict(os.environ) == variables
    assert sorted(finished) == ["a", "b", "c"]
    share = max(1, (os.cpu_count() or 1) // 2)
    assert {(tmp_path / name / "log.txt").read_text() for name in finished} == {f"{share}\n"}
    assert errors == {"killed": f"its process died (out of memory?): {tmp_path / 'killed'}"}
    run_jobs({"a": jobs["a"]}, lambda name, run: None, workers=2)
    assert (tmp_path / "a" / "log.txt").read_text() == 2 * f"{share}\n"  # what was there stays


def visible_devices() -> str:
    """The GPUs that a run sees."""
    return os.environ["CUDA_VISIBLE_DEVICES"]


@pytest.mark.slow
def test_each_process_has_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    jobs = {name: PoolJob(tmp_path / name, visible_devices) for name in ("a", "b")}
    seen: list[str] = []
    assert not run_jobs(jobs, lambda name, gpu: seen.append(gpu), workers=2)
    assert sorted(seen) == ["4", "6"]
    jobs["b"] = jobs["b"]._replace(one_device=False)
    assert not run_jobs(jobs, lambda name, gpu: seen.append(gpu), workers=2)
    assert seen[2:] == ["4,6", "4,6"]


def not_finite() -> None:
    """A run whose loss is NaN."""
    raise NotFiniteError(3, {"loss": float("nan")}, {"latents": torch.zeros(1)})


def test_the_reason_of_a_run_that_fails_is_its_own(tmp_path: Path) -> None:
    jobs = {"a": PoolJob(tmp_path / "a", not_finite)}
    errors = run_jobs(jobs, lambda name, run: None, workers=1)
    assert errors == {"a": "in step 3 loss is nan"}


@pytest.mark.slow
def test_runs_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    """It is killed, and they end as at SIGTERM; so does a process that has nothing to do."""
    script = (
        "from functools import partial\n"
        "from pathlib import Path\n"
        "from tests.helpers.waiting import wait_for_signal\n"
        "from unlearn.sweeps.pool import PoolJob, run_jobs\n"
        "if __name__ == '__main__':\n"
        f"    folders = {{n: Path('{tmp_path}', n) for n in 'ab'}}\n"
        "    jobs = {n: PoolJob(f, partial(wait_for_signal, f)) for n, f in folders.items()}\n"
        "    run_jobs(jobs, lambda *_: None, workers=2)\n"
    )
    (tmp_path / "script.py").write_text(script)
    variables = os.environ | {"PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, tmp_path / "script.py"], cwd=ROOT, env=variables)
    notes = [tmp_path / name / "process" for name in "ab"]
    while not all(note.exists() and note.read_text() for note in notes):
        assert parent.poll() is None
        time.sleep(0.05)
    children = [psutil.Process(int(note.read_text())) for note in notes]
    parent.kill()
    parent.wait()
    _gone, alive = psutil.wait_procs(children, timeout=30)
    assert not alive
    assert all((tmp_path / name / "stopped").exists() for name in "ab")
