"""Finished runs of a sweep, made up."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import yaml

from unlearn.config.run_files import IMAGE_FLAGS

FLAGS = [f"{side}_{flag}" for side in ("base", "unlearned") for flag in IMAGE_FLAGS]
FIELDS = ["set", "prompt", "seed", "counts", *FLAGS, "rmse"]
RESULT = {
    "concept": "panda", "kind": "instance", "method": "doco", "settings": {},
    "excluded_prompts": [], "sets": {}, "sha256": {},
}  # fmt: skip


def images(unseen: int, kept: int) -> list[dict[str, str]]:
    """Ten unseen and ten unrelated prompts, so many of which show the target and are kept."""
    rows = []
    for part, hits in (("unseen_target", unseen), ("unrelated", kept)):
        for number in range(10):
            row = dict.fromkeys(FIELDS, "0")
            right = str(int(number < hits))
            row |= {"set": part, "prompt": f"{part} {number}", "counts": "1", "base_right": "1"}
            row["rmse"] = "0.0"
            rows.append(row | {"unlearned_right": right})
    return rows


def make_run(folder: Path, unseen: int, kept: int, **config: Any) -> Path:
    """A finished run directory."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = {"concept": {"name": "panda"}, "method": {"name": "doco", "lr": 1e-4}, "seed": 0}
    (folder / "config.yaml").write_text(yaml.safe_dump(whole | config))
    (folder / "result.json").write_text(json.dumps(RESULT))
    with (folder / "images.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(images(unseen, kept))
    return folder
