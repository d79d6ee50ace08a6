"""Rows of Table 2, made up and read back."""

from __future__ import annotations

import csv
from pathlib import Path


def write_run(folder: Path, name: str, unseen: float, retention: float) -> None:
    """A run of 40 prompts a set, the first share of which has the flag."""
    flags = [
        "base_right", "unlearned_right", "base_anchor", "unlearned_anchor", "base_broken",
        "unlearned_broken",
    ]  # fmt: skip
    with (folder / f"{name}.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["set", "prompt", "seed", "counts", *flags, "rmse"])
        for part in ("seen_target", "unseen_target", "related", "unrelated"):
            share = unseen if part.endswith("target") else retention
            for i in range(40):
                right = int(i < share * 40)
                anchor = int(part.endswith("target") and not right)
                writer.writerow([part, f"{part} {i}", i, 1, 1, right, 0, anchor, 0, 0, 0.0])


def rows_of(text: str) -> dict[str, dict[str, str]]:
    """The table's cells by method and column."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    head, _, *body = ([cell.strip() for cell in line] for line in lines)
    head = [column.split(" (n = ")[0] for column in head]
    return {line[0]: dict(zip(head, line, strict=False)) for line in body}
