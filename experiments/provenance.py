"""Where kept results come from: provenance.csv beside them, a line a result.

A line has the hash of the run's configuration, the package's commit, the date, the machine and the
precision. Results that were kept before this was recorded say so; of them only the last commit that
wrote the file is known (`file commit`).
"""

from __future__ import annotations

import csv
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from experiments.lines import read_lines
from unlearn.utils.atomic import atomic_path

FILE = "provenance.csv"
FACTS = ("config", "commit", "date", "device", "processor", "threads", "precision")
COLUMNS = ["result", *FACTS, "file commit"]
NOT_RECORDED = "not recorded"
OF_THE_MACHINE = {"run_dir", "trainer", "logger", "callbacks", "log_group"}  # no part of the hash


def config_hash(saved: Mapping[str, Any]) -> str:
    """The SHA-256 of a run's configuration, without its folder and what belongs to the machine.

    Args:
        saved: as config.yaml holds it.
    """
    kept = {key: value for key, value in saved.items() if key not in OF_THE_MACHINE}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()


def facts_of(run: Path) -> dict[str, str]:
    """What the files of a run directory say; `NOT_RECORDED` where they do not."""
    facts: dict[str, str] = {}
    if (path := run / "environment.json").exists():
        recorded = json.loads(path.read_text(encoding="utf-8"))
        facts = {key: str(recorded[key]) for key in FACTS if recorded.get(key)}
        if "commit" in facts and recorded.get("uncommitted changes"):
            facts["commit"] += " with changes"
    if (path := run / "config.yaml").exists():
        facts["config"] = config_hash(yaml.safe_load(path.read_text(encoding="utf-8")))
    return {key: facts.get(key, NOT_RECORDED) for key in FACTS}


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let one process at a time go on, of those that keep results in the folder."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def keep_provenance(folder: Path, result: str, run: Path) -> None:
    """Write a result's line, in place of an earlier one.

    Args:
        folder: of the results.
        result: the file, from the folder, or a file's name with a line's after it.
        run: the run directory that the result is from.
    """
    with locked(folder):
        lines = {line["result"]: line for line in read_lines(folder / FILE)}
        lines[result] = {"result": result, **facts_of(run), "file commit": ""}
        write_provenance(folder, lines)


def write_provenance(folder: Path, lines: Mapping[str, Mapping[str, str]]) -> None:
    """Write the lines of all results, sorted by their names."""
    with (
        atomic_path(folder / FILE) as partial,
        partial.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines[result] for result in sorted(lines))


def recorded_configs(folder: Path) -> dict[str, str]:
    """The hash of the configuration by result, where it was recorded."""
    lines = read_lines(folder / FILE)
    return {line["result"]: line["config"] for line in lines if line["config"] != NOT_RECORDED}
