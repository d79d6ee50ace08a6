"""Table 2 on Stable Diffusion 1.4: its plan, and its runs on several GPUs."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.table2 import sd14
from experiments.table2.published import HERE, kind_of
from experiments.table2.run import Job, jobs_of
from experiments.table2.sd14 import (
    Call,
    check_jobs,
    commands_of,
    evaluation_of,
    folder_of,
    overrides_of,
    read_plan,
    run_all,
    visible,
)
from tests.helpers.table2 import rows_of
from unlearn.config.compose import compose
from unlearn.evaluation.protocol import read_protocol

PLAN = read_plan()


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [[], [sd14.RANDOM]])
def test_every_row_and_protocol_is_accepted(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    call = Call(Path("runs"), overrides, 1 if overrides else None)
    jobs = jobs_of(PLAN, "sd14", list(PLAN["rows"]))
    check_jobs(jobs, PLAN, call)
    for target in PLAN["targets"]:
        chosen = evaluation_of(Job("uce", target, 0, ["method=uce"]), PLAN, call)
        protocol = read_protocol(compose(chosen, "evaluate").evaluation, target)
        assert protocol.name == {"instance": "spm_general", "style": "spm_artists"}[kind_of(target)]
        assert protocol.limit == call.limit
        assert protocol.clip == ("emoji" if overrides else "openai/clip-vit-base-patch32")
    assert len({job.name for job in jobs}) == len(jobs) == 7 * (15 + 4) + 2 * 7


def test_what_no_run_takes_is_refused_at_once(tmp_path: Path) -> None:
    jobs = jobs_of(PLAN, "sd14", ["doco"])
    for override in ("steps=many", "protocol.stepz=1"):
        with pytest.raises(ValueError, match=override.split("=")[0].split(".")[-1]):
            check_jobs(jobs, PLAN, Call(tmp_path, [override]))


def test_the_command_line_wins_over_the_small_sizes() -> None:
    job = jobs_of(PLAN, "sd14", ["doco"])[0]
    given = [sd14.RANDOM, "model.width=0.25", "protocol.images_per_prompt=7"]
    call = Call(Path("runs"), given)
    config = sd14.config_of(job, PLAN, call)
    assert (config.base.width, config.base.image_size) == (0.25, 64)
    assert (config.steps, config.plan.batch_size, config.seed) == (4, 2, 0)
    assert config.options.warmup_steps == 2  # type: ignore[attr-defined]
    shown = [o for o in evaluation_of(job, PLAN, call) if "images_per_prompt" in o]
    assert shown[-1] == "evaluation.images_per_prompt=7"
    at_inference = sd14.config_of(jobs_of(PLAN, "sd14", ["sld"])[0], PLAN, call)
    assert at_inference.options.warmup_steps == 0  # type: ignore[attr-defined]
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
    log = call.folder / "uce-rembrandt-0" / "log.txt"
    assert run_all(jobs, PLAN, call, ["3", "5"]) == {
        "uce-rembrandt-0": f"no memory left (all of it in {log})"
    }
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
    assert run_all(jobs, PLAN, call, ["3", "5"]) == {}
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert len(list(call.folder.rglob("spm_*.json"))) == 7


ENDS = """#!{python}
import os, pathlib, signal, sys, time
def end(*_):
    pathlib.Path({ended!r}).write_text("ended")
    sys.exit(143)
signal.signal(signal.SIGTERM, end)
pathlib.Path({begun!r}).touch()
time.sleep(60)
"""
DRIVER = """
import sys
from pathlib import Path
from experiments.table2 import sd14
sys.executable = {stub!r}
plan = sd14.read_plan(1)
sd14.run_all(sd14.jobs_of(plan, "sd14", ["uce"]), plan, sd14.Call(Path("runs"), []), ["0"])
"""


@pytest.mark.slow
def test_a_call_that_is_killed_ends_its_runs_too(tmp_path: Path) -> None:
    stub, begun, ended = (tmp_path / name for name in ("unlearn", "begun", "ended"))
    names = {"python": sys.executable, "begun": str(begun), "ended": str(ended)}
    stub.write_text(ENDS.format(**names))
    stub.chmod(0o755)
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER.format(stub=str(stub))], cwd=tmp_path,
        stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(HERE.parents[1])},
    )  # fmt: skip
    while not begun.exists():
        assert driver.poll() is None
        time.sleep(0.05)
    driver.terminate()
    assert driver.wait(timeout=60) == 143
    assert ended.read_text() == "ended"


def test_another_model_or_spelling_is_known_for_what_it_is() -> None:
    assert Call(Path("runs"), ["model.random_weights=True"]).random
    done = subprocess.run(
        [sys.executable, "-m", "experiments.table2.sd14", "model=sd15"], text=True,
        capture_output=True, cwd=HERE.parents[1],
    )  # fmt: skip
    assert done.returncode == 2
    assert "model=sd15: the published figures are of Stable Diffusion 1.4" in done.stderr


def test_the_gpus_that_are_visible_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible(2) == ["0", "1"]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    assert visible(3) == ["0", "1", "2"]
    with pytest.raises(ValueError, match="--devices=8: from 1 to 3 are there"):
        visible(8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6,7")
    assert visible(2) == ["4", "6"]
    for count in (0, 4):
        with pytest.raises(ValueError, match=f"--devices={count}: from 1 to 3"):
            visible(count)


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
