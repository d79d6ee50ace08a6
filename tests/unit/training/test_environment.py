"""Tests of what a run records of its origin."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from unlearn.training import environment
from unlearn.training.environment import read_commit, write_environment


def git(folder: Path, *arguments: str) -> str:
    """The output of git with a name of its own."""
    name = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    command = ["git", "-C", str(folder), *name, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package that git tracks."""
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    return folder


def test_commit_of_a_tracked_package(package: Path) -> None:
    head = git(package, "rev-parse", "HEAD")
    assert read_commit(package) == {"commit": head, "uncommitted changes": False}
    (package / "other.txt").write_text("untracked")
    assert read_commit(package)["uncommitted changes"] is False
    (package / "__init__.py").write_text("x = 1")
    assert read_commit(package) == {"commit": head, "uncommitted changes": True}


def test_no_commit_is_made_up(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package in a folder that a user's repository ignores has no commit, nor one without git."""
    installed = package.parent / "venv"
    installed.mkdir()
    (installed / "__init__.py").write_text("")
    assert read_commit(installed) == {}
    monkeypatch.setenv("PATH", "")
    assert read_commit(package) == {}


def test_environment_names_the_origin_and_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_API_KEY", "hunter2hunter2")
    monkeypatch.setattr(sys, "argv", ["/home/me/bin/unlearn", "train", "a b", "x=hunter2hunter2"])
    write_environment(SimpleNamespace(folder=tmp_path, device="cpu", precision="fp32"))  # type: ignore[arg-type]
    text = (tmp_path / "environment.json").read_text()
    facts = json.loads(text)
    assert facts["command"] == "unlearn train 'a b' x=$SOME_API_KEY"
    assert "hunter2" not in text and "/home/me" not in text
    date = datetime.fromisoformat(facts["date"])
    assert date.utcoffset() == timedelta(0) and datetime.now(UTC) - date < timedelta(minutes=5)
    assert facts["threads"] == torch.get_num_threads()
    assert (facts["device"], facts["precision"]) == ("CPU", "fp32")


def test_processor_is_read_where_the_system_tells_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text("vendor_id\t: x\nmodel name\t: Some CPU: 3 GHz\n")
    monkeypatch.setattr(environment, "CPU_FILE", file)
    assert environment.processor_name() == "Some CPU: 3 GHz"
