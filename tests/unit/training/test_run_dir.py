"""What a run directory tells a later call, damaged checkpoints, and what beginning anew deletes."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest
import torch
import yaml

from tests.helpers.checkpoints import checkpoint_state, write_checkpoint
from unlearn.config.compose import compose
from unlearn.config.parse import parse_config
from unlearn.config.run_config import RunConfig
from unlearn.training.checkpoints import checkpoint_step
from unlearn.training.metrics_file import MetricsFile
from unlearn.training.run_dir import (
    OUTPUTS,
    Progress,
    first_difference,
    open_run_dir,
    read_progress,
)
from unlearn.utils.atomic import atomic_path


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return configured(tmp_path / "run")


@pytest.fixture
def run(config: RunConfig) -> Path:
    os.close(open_run_dir(config, Progress()))
    return config.folder


def configured(run: Path, *overrides: str) -> RunConfig:
    return parse_config(compose(["concept=panda", f"run_dir='{run}'", *overrides]))


def test_a_run_goes_on_under_the_same_configuration(config: RunConfig, run: Path) -> None:
    assert read_progress(configured(run.parent / "other")) == Progress()
    assert read_progress(config) == Progress(begun=True)
    free = [
        "checkpoint_every=7", "logger=wandb", "log_images_every=3", "gradient_checkpointing=true",
        "+callbacks.timer._target_=lightning.pytorch.callbacks.Timer",
    ]  # fmt: skip
    assert read_progress(configured(run, *free)) == Progress(begun=True)
    moved = run.rename(run.parent / "elsewhere")  # the folder may have another name by now
    assert read_progress(configured(moved)) == Progress(begun=True)
    moved.rename(run)
    (run / "checkpoints").mkdir()
    path = run / "checkpoints" / "last.ckpt"
    write_checkpoint(path, 12)
    assert read_progress(config) == Progress(begun=True, checkpoint=path, step=12)
    (run / "unlearned.safetensors").touch()
    assert read_progress(config) == Progress(begun=True, step=config.steps, trained=True)
    assert read_progress(configured(run, "resume=false", "seed=3")) == Progress()


def test_where_equal_settings_come_from_is_no_difference(run: Path) -> None:
    """A recipe of another name, and folders of recipes that are not looked in."""
    same = ["method.recipe=regression", "model.recipes=[emoji,sd14]"]
    assert read_progress(configured(run, *same)) == Progress(begun=True)
    with pytest.raises(ValueError, match=r"holds a run with method\.lr=0\.0001, not 0\.0002"):
        read_progress(configured(run, "method.recipe=doco_base_start"))


@pytest.mark.parametrize(
    ("override", "key", "old", "new"),
    [
        ("method.lr=1e-3", "method.lr", "0.0001", "0.001"),
        ("concept.targets=[panda,fox]", "concept.targets", "None", r"\['panda', 'fox'\]"),
        ("evaluation.images_per_prompt=9", "evaluation.images_per_prompt", "2", "9"),
        ("method=esd", "method.name", "'doco'", "'esd'"),
    ],
)
def test_another_run_is_refused_by_its_first_difference(
    run: Path, override: str, key: str, old: str, new: str
) -> None:
    message = f"run_dir={run}: holds a run with {key}={old}, not {new}; .* resume=false"
    with pytest.raises(ValueError, match=message):
        read_progress(configured(run, override))


def test_only_the_evaluation_of_a_trained_run_may_draw_in_other_batches(run: Path) -> None:
    """Training draws images too, whose last bits depend on how many are drawn at a time."""
    with pytest.raises(ValueError, match=r"holds a run with sampling_batch_size=None, not 2"):
        read_progress(configured(run, "sampling_batch_size=2"))
    (run / "unlearned.safetensors").touch()
    assert read_progress(configured(run, "sampling_batch_size=2")).trained
    with pytest.raises(ValueError, match=r"method\.lr=0\.0001, not 0\.001"):
        read_progress(configured(run, "sampling_batch_size=2", "method.lr=1e-3"))


def test_keys_that_one_side_lacks_differ() -> None:
    assert first_difference({"a": 1, "b": {"c": 2}}, {"a": 1}) == ("b.c", "2", "nothing")
    assert first_difference({}, {"a": {"b": None}}) == ("a.b", "nothing", "None")
    assert first_difference({"run_dir": "x", "logger": {"a": 1}}, {"checkpoint_every": 2}) is None


@pytest.mark.parametrize("text", ["", "a: [", "name: mine\n", "\xff"])
def test_a_folder_of_something_else_is_left_alone(run: Path, text: str) -> None:
    (run / "config.yaml").write_bytes(text.encode("latin-1"))
    for resume in ("true", "false"):
        with pytest.raises(ValueError, match="damaged, or not that of a run"):
            read_progress(configured(run, f"resume={resume}"))


class Code:
    """Its pickle would make a folder."""

    def __reduce__(self) -> object:
        return os.mkdir, ("made_by_a_pickle",)


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    state = checkpoint_state(3, state_dict={"a": torch.arange(10000.0)})
    torch.save(state, path)
    assert checkpoint_step(path) == 3
    good = path.read_bytes()
    for place in range(2000, len(good) - 2000, 4999):
        path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        with pytest.raises(ValueError, match=r"last\.ckpt: damaged.*checksum.*the first step"):
            checkpoint_step(path)
    for size in (0, 10, len(good) // 2, len(good) - 1):
        path.write_bytes(good[:size])
        with pytest.raises(ValueError, match=r"last\.ckpt: damaged"):
            checkpoint_step(path)
    for other in ({"weights": 1}, state | {"code": Code()}, state | {"metrics": [5]}):
        torch.save(other, path)
        with pytest.raises(ValueError, match=r"or not a checkpoint of a run"):
            checkpoint_step(path)
    assert not Path("made_by_a_pickle").exists()


def test_beginning_anew_deletes_what_a_run_wrote_and_nothing_else(
    config: RunConfig, run: Path
) -> None:
    (run / "mine.txt").touch()
    for name in ("steps/000004", "evaluation", "images", "checkpoints", "export"):
        (run / name).mkdir(parents=True)
        (run / name / "file").touch()
    exports = ("delta.bin", "lora.safetensors", "kohya.safetensors")
    for name in ("metrics.csv", "images.csv", "failed_step_rank0.pt", "result.json", *exports):
        (run / name).touch()
    os.close(open_run_dir(config, Progress()))
    assert sorted(p.name for p in run.iterdir()) == ["config.yaml", "mine.txt"]
    assert OUTPUTS[-1] == "config.yaml"  # a call killed while it deletes leaves the folder a run's
    assert yaml.safe_load((run / "config.yaml").read_text())["concept"]["name"] == "panda"


def test_two_processes_do_not_work_in_one_run(config: RunConfig) -> None:
    run = config.folder
    held = open_run_dir(config, Progress())
    with pytest.raises(ValueError, match=rf"run_dir={run}: another process is at work in it"):
        open_run_dir(config, Progress(begun=True))
    os.close(held)
    os.close(open_run_dir(config, Progress(begun=True)))


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("before")
    with pytest.raises(KeyboardInterrupt), atomic_path(path) as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert path.read_text() == "before"


def test_metrics_go_on_from_the_rows_of_a_checkpoint(tmp_path: Path) -> None:
    """Rows after it, and a torn one, are dropped."""
    rows = [({"b": 0.1}, 0), ({"b": 1 / 3, "a": 2.0}, 1), ({"b": 1e-30}, 2), ({"a": 4.0}, 3)]
    files = []
    for name, kept in (("undisturbed", 4), ("resumed", 2)):
        path = tmp_path / name
        metrics = MetricsFile(path)
        for values, step in rows:
            metrics.log_metrics(values, step)
        if kept < 4:
            with path.open("a") as file:
                file.write("3,torn")
            metrics = MetricsFile(path)
            metrics.restore([{**values, "step": step} for values, step in rows[:kept]])
            for values, step in rows[kept:]:
                metrics.log_metrics(values, step)
        files.append(path.read_bytes())
    assert files[0] == files[1]
    read = list(csv.DictReader((tmp_path / "resumed").open()))
    assert read[1] == {"a": "2.0", "b": repr(1 / 3), "step": "1"}
    metrics.restore([])
    assert not path.exists()
