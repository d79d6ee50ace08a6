"""Compare the settings of runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from unlearn.training.run_dir import result_settings

NAMED = {"concept": "name", "anchor": "name", "model": "pretrained"}  # by section: the key shown


def comparable_settings(config: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a configuration that can change the result, by dotted keys."""
    kept = dict(config)
    for key, name in NAMED.items():
        if key in kept:
            kept[key] = {name: kept[key].get(name)}
    return result_settings(kept)


class HasSettings(Protocol):
    """An object with settings that can be compared."""

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that can change the result, by dotted keys."""


def differing_keys(runs: Sequence[HasSettings]) -> list[str]:
    """Return the keys whose values differ between the runs that have them."""
    values: dict[str, set[str]] = {}
    for run in runs:
        for key, value in run.settings.items():
            values.setdefault(key, set()).add(repr(value))
    return [key for key, different in values.items() if len(different) > 1]


def format_setting(value: Any) -> str:
    """Return a setting as the text of a table's cell."""
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)
