"""What the loggers keep of a run, read back from their own files."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.integration.test_console import unlearn

CURVES = {
    "discriminator_loss", "discriminator/real_accuracy", "discriminator/fake_accuracy",
    "unlearn_loss", "relearn_loss", "norm/unlearn", "norm/relearn", "surgery/cosine",
    "surgery/conflicting", "surgery/norm_removed", "surgery/update_cosine",
}  # fmt: skip
RATES = {"eval/related/right", "eval/unrelated/broken"}


@pytest.fixture(scope="module")
def smoke(random_model: Path, random_judge: Path) -> list[str]:
    return [
        "concept=panda", f"model.pretrained={random_model}", f"evaluation.judge={random_judge}",
        "steps=4", "method.warm_up=2", "batch_size=2", "data.images=4", "data.relearn_images=4",
        "data.sampling_steps=2", "evaluation.seeds=1", "evaluation.sampling_steps=2",
        "trainer.accelerator=cpu", "trainer.log_every_n_steps=1", "logger.images_every=2",
    ]  # fmt: skip


def wandb_records(path: Path) -> Iterator[object]:
    """The records of an offline run: LevelDB's log format after a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    data, position, parts = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        if (left := 32768 - position % 32768) < 7:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # full, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


@pytest.mark.slow
def test_wandb_offline_runs_hold_config_curves_and_pictures(
    smoke: list[str], tmp_path: Path
) -> None:
    """Two jobs of a sweep, one W&B run each."""
    done = unlearn(
        "train", "-m", *smoke, "logger=wandb", "logger.mode=offline", "seed=0,1", cwd=tmp_path,
        WANDB_SILENT="true",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    for seed in (0, 1):
        run = tmp_path / "runs" / f"panda-doco-{seed}"
        (file,) = run.glob("wandb/offline-run-*/run-*.wandb")
        records = list(wandb_records(file))
        (info,) = [r.run for r in records if r.WhichOneof("record_type") == "run"]
        assert (info.project, info.run_group) == ("unlearn", "panda")
        assert info.display_name == run.name
        assert {"concept", "method", "steps"} <= {item.key for item in info.config.update}
        history = [r.history for r in records if r.WhichOneof("record_type") == "history"]
        keys = {i.key or "/".join(i.nested_key) for h in history for i in h.item}
        pictures = {"images/unlearned/_type", "images/before_after/_type"}
        assert keys >= CURVES | RATES | pictures
        assert Image.open(run / "images" / "step_000002.png").size == (256, 256)


@pytest.mark.slow
def test_tensorboard_holds_curves_by_step_and_pictures(smoke: list[str], tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    overrides = ["logger=tensorboard", "method.accumulate=2", "run_dir=run"]
    done = unlearn("train", *smoke, *overrides, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) >= CURVES | RATES
    assert set(events.Tags()["images"]) == {"images/unlearned", "images/before_after"}
    assert [e.step for e in events.Scalars("unlearn_loss")] == [2, 2, 3, 3]
    assert [e.step for e in events.Images("images/unlearned")] == [2, 4]
