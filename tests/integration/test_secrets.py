"""Secrets of the environment: in no file of a run, and in nothing that is printed."""

from __future__ import annotations

import contextlib
import logging
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

from tests.helpers.bad_input import Case, snapshot, train
from tests.helpers.console import unlearn
from unlearn.cli import main as cli
from unlearn.config.compose import compose
from unlearn.config.jobs import check_jobs
from unlearn.config.parse import parse_config
from unlearn.sweeps.jobs import run_job
from unlearn.utils.credentials import hide_secrets, is_secret

SECRETS = {"WANDB_API_KEY": "f00d" * 10, "HF_TOKEN": "hf_verySecretIndeed123"}


def test_no_file_and_no_line_of_a_run_holds_a_secret(
    random_model: Path, random_judge: Path, tmp_path: Path
) -> None:
    overrides = [
        f"model.pretrained={random_model}", f"evaluation.judge={random_judge}", "steps=3",
        "method.warmup_steps=1", "batch_size=2", "data.images=2", "data.relearn_images=2",
        "data.num_inference_steps=1", "evaluation.images_per_prompt=1",
        "evaluation.num_inference_steps=1",
        "trainer.accelerator=cpu", "trainer.log_every_n_steps=1",
        "logger=wandb", "logger.wandb.mode=offline", "log_images_every=0",
    ]  # fmt: skip
    done = unlearn("train", "concept=panda", *overrides, "run_dir=run", cwd=tmp_path, **SECRETS)
    assert done.returncode == 0, done.stderr[-2000:]
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert {"config.yaml", "metrics.csv", "result.json"} <= {path.name for path in files}
    assert any(path.suffix == ".wandb" for path in files)
    printed = (done.stdout.encode(), done.stderr.encode())
    for text in (*printed, *(path.read_bytes() for path in files)):
        for secret in SECRETS.values():
            assert secret.encode() not in text


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            "logger=wandb logger.wandb.project=${oc.env:WANDB_API_KEY}",
            r"logger\.wandb\.project: holds the value of the environment variable WANDB_API_KEY",
        ),
        ("logger=wandb log_group=x-{secret}", r"log_group: holds .* WANDB_API_KEY"),
        ("run_dir=runs/{secret}", r"run_dir: holds the value of .* WANDB_API_KEY"),
        ("+logger.api_key={secret}", r"logger\.api_key: holds .* WANDB_API_KEY"),
        (
            "+logger.api_key=never-in-the-environment",
            r"logger\.api_key=\*\*\*: an entry with the path",
        ),
        (
            "logger=wandb +logger.wandb.api_key=never-in-the-environment",
            r"logger\.wandb\.api_key=\*\*\*: would be written to config\.yaml",
        ),
        ("+wandb_api_key=never-in-the-environment", r"wandb_api_key=\*\*\*: there is no such key"),
        (
            "logger=wandb logger.wandb.projct={secret}",
            r"logger\.wandb\.projct: holds .* WANDB_API_KEY",
        ),
        ("concept={secret}", r"concept: holds .* WANDB_API_KEY"),
    ],
)
def test_an_override_that_holds_a_secret_is_refused_and_not_repeated(
    refused: Callable[[Case], None], monkeypatch: pytest.MonkeyPatch, overrides: str, message: str
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    given = overrides.replace("{secret}", SECRETS["WANDB_API_KEY"])
    refused(train(given, rf"^((?!f00df00d|never-in).)*{message}((?!f00df00d|never-in).)*$"))


def test_no_job_of_a_sweep_writes_a_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = SECRETS["WANDB_API_KEY"]
    monkeypatch.setenv("WANDB_API_KEY", secret)
    monkeypatch.chdir(tmp_path)
    given = ["concept=panda", "logger=wandb", f"logger.wandb.project={secret}"]
    with pytest.raises(ValueError, match=r"wandb\.project: holds the value of .* WANDB_API_KEY"):
        check_jobs([compose(given)])
    given = ["concept=panda", "+wandb_api_key='mine alone'"]  # an unknown key
    parse = partial(parse_config, compose([*given, "run_dir=run"]))  # as the job begins
    run_job(Path("run"), [*given, f"logger.wandb.project={secret}"], parse)
    text = (tmp_path / "run" / "error.txt").read_text()
    assert "overrides: concept=panda +wandb_api_key=*** logger.wandb.project=$WANDB_API_KEY" in text
    assert secret not in text + capsys.readouterr().err
    assert "mine alone" not in text


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("AWS_SECRET_ACCESS_KEY", True),
        ("MY_ACCESS_KEY_ID", True),
        ("DB_PASSWD", True),
        ("GPG_PASSPHRASE_FILE", True),
        ("GOOGLE_CREDENTIALS_JSON", True),
        ("SSH_PRIVATE_KEY", True),
        ("OPENAI_APIKEY", True),
        ("HF_TOKEN_2", True),
        ("TOKENIZERS_PARALLELISM", False),
        ("KEYBOARD", False),
        ("HOME", False),
    ],
)
def test_a_name_with_a_secret_word_in_any_place_holds_a_secret(name: str, secret: bool) -> None:
    assert is_secret(name) == secret


SHOWS = ["--cfg", "job", "--resolve"]


@pytest.fixture
def own_logging() -> Iterator[None]:
    """What Hydra's --info makes of the root logger ends with the test."""
    root = logging.getLogger()
    level, handlers = root.level, [*root.handlers]
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.parametrize(
    "command",
    [
        ["train", "concept=panda", "steps=${nope}", "logger=wandb", "log_group=${oc.env:HF_TOKEN}"],
        ["train", "concept=panda", "hydra.output_subdir=h", "log_group=${oc.env:HF_TOKEN}"],
        ["train", "concept=panda", "log_group=${oc.env:HF_TOKEN}", *SHOWS],
        ["train", "concept=panda", "log_group=${oc.env:HF_TOKEN}", "--info", "config"],
        ["train", "concept=panda", "log_group={HF_TOKEN}"],
        ["report", "run", "out=${oc.env:HF_TOKEN}.html"],
        ["report", "run", "out={HF_TOKEN}.html"],
        ["report", "{HF_TOKEN}"],
        ["evaluate", "run", "evaluation.judge=${oc.env:HF_TOKEN}"],
        ["evaluate", "{HF_TOKEN}", "concept=panda"],
        ["config", "{HF_TOKEN}"],
        ["list", "{HF_TOKEN}"],
        ["{HF_TOKEN}"],
    ],
    ids=" ".join,
)
@pytest.mark.usefixtures("own_logging")
def test_no_command_prints_or_writes_a_secret(
    bad_input_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    command: list[str],
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    shutil.copytree(bad_input_run, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    before = snapshot(tmp_path)
    given = [word.replace("{HF_TOKEN}", SECRETS["HF_TOKEN"]) for word in command]
    monkeypatch.setattr(sys, "argv", ["unlearn", *given])
    GlobalHydra.instance().clear()
    with contextlib.suppress(SystemExit):
        cli.main()
    printed = capfd.readouterr()
    assert SECRETS["HF_TOKEN"] not in printed.out + printed.err
    assert "Error executing job" not in printed.err
    assert snapshot(tmp_path) == before


def test_a_message_names_the_variable_in_the_place_of_its_value(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRETS["HF_TOKEN"])
    monkeypatch.setenv("MY_PASSWORD", "short")  # a word that any text may hold
    assert hide_secrets("hf_verySecretIndeed123 and short") == "$HF_TOKEN and short"
