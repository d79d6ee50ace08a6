"""Bad paths: names that climb out, files in the place of folders, loops, and other runs."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.helpers.bad_cases.paths import CASES
from tests.helpers.bad_input import Case, name_of
from unlearn.cli import main as cli
from unlearn.training.run_dir import delete_outputs


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_a_bad_path_is_refused(case: Case, refused: Callable[[Case], None]) -> None:
    refused(case)


def test_a_picture_that_is_a_link_is_replaced_and_not_followed(
    bad_input_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, kept = tmp_path / "run", tmp_path / "kept.txt"
    shutil.copytree(bad_input_run, run)
    kept.write_text("kept")
    (run / "sample.png").symlink_to(kept)
    monkeypatch.setattr(sys, "argv", ["unlearn", "sample", str(run), "a panda"])
    cli.main()
    assert kept.read_text() == "kept"
    assert not (run / "sample.png").is_symlink()
    assert Image.open(run / "sample.png").format == "PNG"


def test_beginning_anew_deletes_a_run_behind_a_link_and_nothing_that_it_links_to(
    tmp_path: Path,
) -> None:
    """runs/ may lie on another disk; what a run's folder links to is not the run's."""
    disk, other = tmp_path / "disk", tmp_path / "other"
    for folder in (disk / "run", other):
        folder.mkdir(parents=True)
        (folder / "last.ckpt").write_text("kept")
    (disk / "run" / "config.yaml").write_text("a: 1")
    (disk / "run" / "checkpoints").symlink_to(other)
    (tmp_path / "runs").symlink_to(disk)
    delete_outputs(tmp_path / "runs" / "run")
    assert [path.name for path in (disk / "run").iterdir()] == ["last.ckpt"]  # not a run's
    assert [path.name for path in other.iterdir()] == ["last.ckpt"]
