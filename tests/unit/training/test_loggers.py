"""A logger and callbacks that overrides alone add to a run; what does not fit is refused."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch.callbacks import Callback
from safetensors.torch import load_file

import unlearn
from unlearn.config.compose import compose
from unlearn.config.parse import parse_config
from unlearn.training.loggers import build_callbacks, build_loggers

CALLBACKS, LOGGERS = "lightning.pytorch.callbacks", "lightning.pytorch.loggers"
ADDED = [
    f"+logger.second._target_={LOGGERS}.CSVLogger", "+logger.second.name=second",
    f"+callbacks.rates._target_={CALLBACKS}.LearningRateMonitor",
    "+callbacks.rates.logging_interval=step",
    "+callbacks.own._target_=tests.unit.training.test_loggers.CountingCallback",
    "+callbacks.own.first=10",
]  # fmt: skip


class CountingCallback(Callback):
    """A callback of one's own: it counts the batches from a number on."""

    counted: int

    def __init__(self, first: int = 0) -> None:
        CountingCallback.counted = first

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        CountingCallback.counted += 1


@pytest.fixture(scope="module")
def smoke(random_model: Path, random_judge: Path) -> list[str]:
    """A run of four steps."""
    return [
        "concept=panda", f"model.pretrained={random_model}", f"evaluation.judge={random_judge}",
        "method=concept_ablation", "steps=4", "batch_size=2", "data.images=4",
        "data.relearn_images=2", "data.num_inference_steps=1", "evaluation.images_per_prompt=1",
        "evaluation.num_inference_steps=1", "trainer.accelerator=cpu",
        "trainer.log_every_n_steps=1",
    ]  # fmt: skip


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")
@pytest.mark.filterwarnings("ignore:You are using `LearningRateMonitor`:RuntimeWarning")
def test_overrides_alone_add_a_logger_and_callbacks(smoke: list[str], tmp_path: Path) -> None:
    plain, added = (
        unlearn.train([*smoke, *more, f"run_dir={tmp_path / name}"])
        for name, more in (("plain", []), ("added", ADDED))
    )
    assert CountingCallback.counted == 10 + 4
    metrics = rows(added.folder / "metrics.csv")
    (second,) = (added.folder / "second").glob("*/metrics.csv")  # in the run directory by itself
    losses, copies = (
        [float(row["loss/unlearn"]) for row in own if row["loss/unlearn"]]
        for own in (metrics, rows(second))
    )
    assert len(losses) == 4
    assert copies == pytest.approx(losses)
    rates = [float(row["lr-AdamW"]) for row in metrics if row["lr-AdamW"]]
    assert rates == pytest.approx([5e-5] * 4)
    assert "lr-AdamW" not in rows(plain.folder / "metrics.csv")[0]
    ends = {key: value for row in rows(second) for key, value in row.items() if value}
    related = added.result["sets"]["related"]["right"]["unlearned"]["value"]
    assert float(ends["eval/related/right"]) == pytest.approx(related)
    config = yaml.safe_load((added.folder / "config.yaml").read_text())
    assert yaml.safe_load((second.parent / "hparams.yaml").read_text()) == config
    assert config["callbacks"]["own"]["first"] == 10
    weights = [load_file(run.weights) for run in (plain, added)]  # what is logged moves nothing
    assert all(weights[1][name].equal(weight) for name, weight in weights[0].items())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([f"+logger.a._target_={LOGGERS}.CSVLogger", "+logger.a.nam=x"],
         r"logger\.a\.nam=x: there is no such key; did you mean 'name'"),
        ([f"+callbacks.a._target_={CALLBACKS}.Timer", "+callbacks.a.durtion=1"],
         r"callbacks\.a\.durtion=1: there is no such key; did you mean 'duration'"),
    ],
)  # fmt: skip
def test_what_a_class_does_not_take_is_refused_before_any_work(
    overrides: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        parse_config(compose(["concept=panda", *overrides]))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([f"+logger.a._target_={LOGGERS}.MLFlowLogger"], r"logger\.a: .*mlflow"),
        ([f"+callbacks.a._target_={CALLBACKS}.EarlyStopping"], r"callbacks\.a: .*'monitor'"),
        ([f"+callbacks.a._target_={CALLBACKS}.Timer", "+callbacks.a.interval=day"],
         r"callbacks\.a: .*day"),
    ],
)  # fmt: skip
def test_what_a_class_cannot_be_made_of_is_one_line(
    overrides: list[str], message: str, tmp_path: Path
) -> None:
    config = parse_config(compose(["concept=panda", f"run_dir={tmp_path / 'run'}", *overrides]))
    with pytest.raises(ValueError, match=message) as error:
        build_loggers(config)
        build_callbacks(config)
    assert len(str(error.value).splitlines()) == 1
