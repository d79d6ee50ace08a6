"""Log metrics to a CSV file that a checkpoint can restore."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from unlearn.utils.atomic import atomic_path


class MetricsFile(Logger):
    """A logger that writes metrics.csv, with columns in alphabetical order.

    It adds a row whenever metrics are logged.

    Attributes:
        rows: all rows, which a checkpoint keeps.
    """

    name = version = ""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, float]] = []
        self.columns: list[str] = []

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Skip the hyper-parameters, since config.yaml has them."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add a row with the metrics and the step."""
        row = {**metrics, "step": step or 0}
        self.rows.append(row)
        if not row.keys() <= {*self.columns}:
            self.restore(self.rows)
            return
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns).writerow(row)

    @rank_zero_only
    def restore(self, rows: list[dict[str, float]]) -> None:
        """Write the file anew with these rows alone."""
        self.rows, self.columns = rows, sorted({key for row in rows for key in row})
        if not rows:
            self.path.unlink(missing_ok=True)
            return
        with (
            atomic_path(self.path) as partial,
            partial.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(rows)
