"""What the experiments share: files that grow by whole runs, counts as arguments, the end."""

from __future__ import annotations

import argparse
import csv
import shutil
from pathlib import Path

import pytest

from experiments.command import end, positive
from experiments.lines import add_lines, read_lines
from experiments.table2.tune import OUTCOME


def test_lines_are_added_to_what_is_there_byte_for_byte(tmp_path: Path) -> None:
    whole, grown = OUTCOME.read_bytes(), tmp_path / "grown.csv"
    assert read_lines(grown) == []
    lines = read_lines(OUTCOME)
    add_lines(grown, lines[:2])
    add_lines(grown, lines[2:])
    assert grown.read_bytes() == whole


def test_lines_that_could_not_be_written_leave_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grown = tmp_path / "grown.csv"
    shutil.copyfile(OUTCOME, grown)

    def stop(writer: csv.DictWriter[str], rows: object) -> None:
        writer.writerow(dict.fromkeys(writer.fieldnames, "torn"))
        raise KeyboardInterrupt

    monkeypatch.setattr(csv.DictWriter, "writerows", stop)
    with pytest.raises(KeyboardInterrupt):
        add_lines(grown, read_lines(grown))
    assert grown.read_bytes() == OUTCOME.read_bytes()
    assert list(tmp_path.iterdir()) == [grown]


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "many", ""])
def test_a_count_is_a_whole_number_of_at_least_1(text: str) -> None:
    assert positive("12") == 12
    with pytest.raises(argparse.ArgumentTypeError, match="no whole number of at least 1"):
        positive(text)


def test_failed_runs_end_the_program_and_are_named() -> None:
    end({})
    with pytest.raises(SystemExit) as ended:
        end({"a-0": "no memory left", "b-0": "killed"})
    first, *rest = str(ended.value.code).splitlines()
    assert first == "2 runs failed; the same command tries them again:"
    assert rest == ["  a-0: no memory left", "  b-0: killed"]
