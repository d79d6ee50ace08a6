"""How a command ends that met an error which nothing foresaw."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from unlearn.cli import main as cli
from unlearn.utils.errors import exit_with_user_error, printable_line

SECRET = "hf_verySecretIndeed123"


def test_a_bug_is_one_line_and_a_file_with_the_details(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", SECRET)

    def fail(paths: object, options: object) -> None:
        raise AssertionError(f"a bug of ours, {SECRET}")

    monkeypatch.setattr("unlearn.cli.report.report_runs", fail)
    monkeypatch.setattr(sys, "argv", ["unlearn", "report", "run"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 1
    said = capsys.readouterr().err
    (path,) = tmp_path.iterdir()
    assert said == (
        "unlearn: AssertionError: a bug of ours, $HF_TOKEN: an error that nothing foresaw; "
        f"{path.name} "
        "has the details. Please report it with that file, as CONTRIBUTING.md says\n"
    )
    details = path.read_text()
    assert details.startswith("unlearn report run\n\nTraceback")
    assert "AssertionError: a bug of ours, $HF_TOKEN" in details
    assert SECRET not in details


def test_a_message_is_one_line_that_a_terminal_does_not_obey(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert printable_line("a\n b\x1b[2J\udcff é") == "a b\\x1b[2J\\udcff é"
    with pytest.raises(SystemExit) as end:
        exit_with_user_error(ValueError("x\x1b]0;\x07\ny"))
    assert end.value.code == 2
    assert capsys.readouterr().err == "unlearn: x\\x1b]0;\\x07 y\n"


def test_ctrl_c_before_a_run_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(paths: object, options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("unlearn.cli.report.report_runs", interrupt)
    monkeypatch.setattr(sys, "argv", ["unlearn", "report", "run"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert (end.value.code, capsys.readouterr().err) == (130, "unlearn: stopped by SIGINT\n")
