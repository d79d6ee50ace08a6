"""Bad command lines: unknown commands, options and formats, and overrides that contradict."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.bad_cases.command_line import CASES
from tests.helpers.bad_input import Case, name_of, snapshot


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_a_bad_command_line_is_refused(case: Case, refused: Callable[[Case], None]) -> None:
    refused(case)


@pytest.mark.parametrize("arguments", [["trian"], ["train", "concept=panda", "methd=esd"]])
def test_the_installed_script_says_the_same(arguments: list[str], tmp_path: Path) -> None:
    script = Path(sys.executable).parent / "unlearn"
    before = snapshot(tmp_path)
    done = subprocess.run([script, *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    lines = [line for line in done.stderr.splitlines() if "[transformers]" not in line]
    assert len(lines) == 1
    assert lines[0].startswith("unlearn: ")
    assert "did you mean" in lines[0]
    assert snapshot(tmp_path) == before
