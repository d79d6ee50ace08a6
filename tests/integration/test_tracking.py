"""What the loggers keep of a run, read back from their own files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from PIL import Image

from tests.helpers.console import unlearn
from tests.helpers.wandb_files import values_of, wandb_records
from unlearn.evaluation.pictures import tile_box
from unlearn.evaluation.table import markdown_table

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "metrics.md"
RATES = {"eval/related/right", "eval/unrelated/broken"}
TABLE = [
    "concept", "set", "metric", "base value", "base low", "base high", "unlearned value",
    "unlearned low", "unlearned high", "n",
]  # fmt: skip


def documented() -> set[str]:
    """The curves of DoCo that the page of logged metrics names."""
    table = PAGE.read_text(encoding="utf-8").partition("At the end")[0]
    rows = [r for r in table.splitlines() if r.startswith("| `") and "`images/" not in r]
    own = [row.split(" | ")[0] for row in rows if "doco_reference" not in row]
    return {name for cell in own for name in re.findall("`(.*?)`", cell)}


@pytest.fixture(scope="module")
def smoke(random_model: Path, random_judge: Path) -> list[str]:
    return [
        "concept=panda", f"model.pretrained={random_model}", f"evaluation.judge={random_judge}",
        "steps=4", "method.warmup_steps=2", "batch_size=2", "data.images=4",
        "data.relearn_images=4",
        "data.num_inference_steps=2", "evaluation.images_per_prompt=1",
        "evaluation.num_inference_steps=2",
        "trainer.accelerator=cpu", "trainer.log_every_n_steps=1", "log_images_every=2",
    ]  # fmt: skip


@pytest.mark.slow
def test_wandb_offline_runs_hold_config_curves_pictures_and_the_table(
    smoke: list[str], tmp_path: Path
) -> None:
    """Two jobs of a sweep, one W&B run each."""
    done = unlearn(
        "train", "-m", *smoke, "logger=wandb", "logger.wandb.mode=offline", "seed=0,1",
        cwd=tmp_path, WANDB_SILENT="true",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    for seed in (0, 1):
        run = tmp_path / "runs" / f"panda-doco-{seed}"
        (file,) = run.glob("wandb/offline-run-*/run-*.wandb")
        by_kind: dict[str, list[Any]] = {}
        for record in wandb_records(file):
            kind = record.WhichOneof("record_type")
            by_kind.setdefault(kind, []).append(getattr(record, kind))
        (info,) = by_kind["run"]
        assert (info.project, info.run_group) == ("unlearn", "panda")
        assert (info.display_name, list(info.tags)) == (run.name, ["doco", "instance"])
        config = values_of(info.config.update)
        expected = OmegaConf.to_container(OmegaConf.load(run / "config.yaml"))
        assert {k: v for k, v in config.items() if k != "_wandb"} == expected

        history = [values_of(record.item) for record in by_kind["history"]]
        keys = {key for row in history for key in row}
        curves = {k for k in keys if not k.startswith(("_", "eval", "images", "trainer"))}
        assert curves == documented()
        steps = [row["trainer/global_step"] for row in history if "loss/unlearn" in row]
        assert steps == [2, 3]
        check_pictures(history, file.parent / "files", run)
        summary: dict[str, Any] = {}
        for record in by_kind["summary"]:
            summary |= values_of(record.update)
        check_rates(summary, run)
        check_intervals(summary, run)
        rows = json.loads((file.parent / "files" / summary["evaluation/path"]).read_text())
        assert rows["columns"] == TABLE
        check_table(rows["data"], run)


def check_pictures(history: list[dict[str, Any]], files: Path, run: Path) -> None:
    """The images by step, each with its prompt and its seed, and the pairs of the prompt sets."""
    grids = [row for row in history if "images/unlearned/captions" in row]
    assert [row["trainer/global_step"] for row in grids] == [2, 4]
    for row in grids:
        captions, names = row["images/unlearned/captions"], row["images/unlearned/filenames"]
        seeds = [int(re.search(r"\(seed (\d+)\)$", caption)[1]) for caption in captions]
        assert seeds == list(range(16))
        kept = run / "images" / f"step_{row['trainer/global_step']:06d}.png"
        with Image.open(kept) as grid:
            for number, name in enumerate(names):
                down, across = (64 * n for n in divmod(number, 4))
                tile = grid.crop((across, down, across + 64, down + 64))
                with Image.open(files / name) as sent:
                    assert sent.tobytes() == tile.tobytes()
    (last,) = [row for row in history if "images/before_after/captions" in row]
    captions, names = last["images/before_after/captions"], last["images/before_after/filenames"]
    assert len(captions) == len(names) == 4 * 8
    assert all(re.match(r"base above unlearned: .* \(seed 10000\d\d\)$", c) for c in captions)
    with Image.open(run / "before_after.png") as picture, Image.open(files / names[-1]) as sent:
        left, top, right, _ = tile_box(picture.width, "unrelated", 0, 7)
        pair = picture.crop((left, top, right, tile_box(picture.width, "unrelated", 1, 7)[3]))
        assert sent.tobytes() == pair.tobytes()


def check_rates(found: dict[str, Any], run: Path) -> None:
    """The rates of the evaluation, as in result.json."""
    sets = json.loads((run / "result.json").read_text())["sets"]
    rates = {
        f"eval/{name}/{metric}": sides["unlearned"]["value"]
        for name, row in sets.items()
        for metric, sides in row.items()
        if sides["unlearned"]["n"]
    }
    assert rates.keys() >= RATES
    assert {key: found[key] for key in rates} == pytest.approx(rates)


def check_intervals(summary: dict[str, Any], run: Path) -> None:
    """The base model's rate and the interval beside each rate."""
    sets = json.loads((run / "result.json").read_text())["sets"]
    base, unlearned = (sets["related"]["right"][side] for side in ("base", "unlearned"))
    found = [summary[f"eval/related/right/{part}"] for part in ("base", "low", "high")]
    assert found == pytest.approx([base["value"], unlearned["low"], unlearned["high"]])


def check_table(data: list[list[Any]], run: Path) -> None:
    """Every rate of both sides with its interval."""
    sets = json.loads((run / "result.json").read_text())["sets"]
    assert [tuple(row[:3]) for row in data] == [
        ("panda", name, metric) for name, row in sets.items() for metric in row
    ]
    for _, name, metric, *numbers in data:
        base, unlearned = (sets[name][metric][side] for side in ("base", "unlearned"))
        ends = [side[end] for side in (base, unlearned) for end in ("value", "low", "high")]
        assert numbers == [*ends, base["n"]]


@pytest.mark.slow
def test_tensorboard_holds_curves_by_step_pictures_and_texts(
    smoke: list[str], tmp_path: Path
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    overrides = ["logger=tensorboard", "method.accumulate_grad_batches=2", "run_dir=run"]
    done = unlearn("train", *smoke, *overrides, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    scalars = set(events.Tags()["scalars"])
    assert {tag for tag in scalars if not tag.startswith("eval")} == documented()
    check_rates({tag: events.Scalars(tag)[-1].value for tag in scalars}, tmp_path / "run")
    drawn = {f"images/unlearned/{n:02}" for n in range(16)}
    assert set(events.Tags()["images"]) == drawn | {
        f"images/before_after/{n:02}" for n in range(32)
    }
    assert [e.step for e in events.Scalars("loss/unlearn")] == [2, 3]
    assert [e.step for e in events.Images("images/unlearned/00")] == [2, 4]
    texts = {
        tag.removesuffix("/text_summary"): events.Tensors(tag)[-1]
        .tensor_proto.string_val[0]
        .decode()
        for tag in events.Tags()["tensors"]
    }
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert texts["evaluation"] == markdown_table(result)
    assert texts["images/unlearned/15/caption"].endswith("(seed 15)")
    assert "(seed 1000000)" in texts["images/before_after/00/caption"]
    (start,) = [
        parsed.session_start_info
        for content in events.PluginTagToContent("hparams").values()
        if (parsed := HParamsPluginData.FromString(content)).HasField("session_start_info")
    ]
    assert start.hparams["method/accumulate_grad_batches"].number_value == 2
    assert start.hparams["concept/name"].string_value == "panda"
