"""Loggers and callbacks by `_target_`: what is no class of Lightning's is refused in one line."""

from __future__ import annotations

from typing import Any

import pytest

from unlearn.config.compose import compose
from unlearn.config.parse import parse_config
from unlearn.config.plugins import parse_callbacks, parse_loggers, shows_images

CSV = {"_target_": "lightning.pytorch.loggers.CSVLogger", "save_dir": "x"}
TIMER = {"_target_": "lightning.pytorch.callbacks.Timer"}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("csv", r"^logger\.own=csv: an entry with the path of a class as _target_ is needed$"),
        ({"mode": "x"}, r"^logger\.own=\['mode'\]: an entry with the path of a class as _tar"),
        ({"_target_": 3}, r"^logger\.own=\['_target_'\]: an entry with the path of a class"),
        ({"_target_": "nowhere.Logger"}, r"^logger\.own\._target_=nowhere\.Logger: .*nowhere"),
        ({"_target_": "json.Nothing"}, r"^logger\.own\._target_=json\.Nothing: .*Nothing"),
        ({"_target_": "json.dumps"}, r"^logger\.own\._target_=json\.dumps: .*"),
        ({"_target_": ""}, r"^logger\.own\._target_=: .*"),
        ({"_target_": "json.JSONDecoder"}, r"_target_=json\.JSONDecoder: is no Logger of Lightn"),
        (TIMER, r"_target_=lightning\.pytorch\.callbacks\.Timer: is no Logger of Lightning$"),
    ],
)
def test_what_is_no_logger_is_refused(entry: Any, message: str) -> None:
    assert parse_loggers({"own": CSV}) == {"own": CSV}
    with pytest.raises(ValueError, match=message) as caught:
        parse_loggers({"csv": CSV, "own": entry})
    assert "\n" not in str(caught.value)


def test_what_is_no_callback_is_refused() -> None:
    assert parse_callbacks({"own": TIMER}) == {"own": TIMER}
    with pytest.raises(ValueError, match=r"^callbacks\.own\._target_=\S+CSVLogger: is no Callback"):
        parse_callbacks({"own": CSV})
    with pytest.raises(ValueError, match=r"^callbacks\.own=Timer: an entry with the path"):
        parse_callbacks({"own": "Timer"})


def test_a_callback_that_writes_checkpoints_of_its_own_is_refused() -> None:
    target = "lightning.pytorch.callbacks.ModelCheckpoint"
    message = rf"^callbacks\.own\._target_={target}: a run writes its own checkpoints \(checkpoint_"
    with pytest.raises(ValueError, match=message):
        parse_callbacks({"own": {"_target_": target}})


def test_an_option_of_our_loggers_is_checked() -> None:
    entry = {"_target_": "unlearn.training.loggers.RunWandbLogger", "mode": "of"}
    with pytest.raises(ValueError, match=r"^logger\.wandb\.mode='of' is unknown; .*'offline'"):
        parse_loggers({"wandb": entry})
    assert shows_images(entry)
    assert not shows_images(CSV)


def test_the_command_line_adds_loggers_and_callbacks() -> None:
    overrides = [
        "concept=panda", "logger=tensorboard",
        "+logger.own._target_=lightning.pytorch.loggers.CSVLogger", "+logger.own.save_dir=logs",
        "+callbacks.timer._target_=lightning.pytorch.callbacks.Timer",
        "+callbacks.timer.interval=step",
    ]  # fmt: skip
    config = parse_config(compose(overrides))
    assert [*config.loggers] == ["tensorboard", "own"]
    assert config.loggers["own"] == {**CSV, "save_dir": "logs"}
    assert config.callbacks == {"timer": {**TIMER, "interval": "step"}}
    plain = parse_config(compose(["concept=panda"]))
    assert plain.loggers == plain.callbacks == {}
    assert (config.log_images_every, plain.log_images_every) == (250, 0)
