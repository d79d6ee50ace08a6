"""Every number that a user gives has a smallest and a largest value."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, get_type_hints

import pytest

from unlearn.cli.demo import DemoOptions
from unlearn.config import schema
from unlearn.data.training_data import DataOptions
from unlearn.evaluation.protocol import Protocol, ProtocolConcept
from unlearn.exports.formats import ExportOptions
from unlearn.exports.merge import MergeOptions
from unlearn.methods.registry import METHODS

SCHEMAS = [
    *(getattr(schema, name) for name in vars(schema) if name.endswith("Options")),
    *(METHODS[name].Options for name in METHODS),
    DataOptions, DemoOptions, ExportOptions, MergeOptions, Protocol, ProtocolConcept,
]  # fmt: skip


@pytest.mark.parametrize("kind", SCHEMAS, ids=lambda kind: kind.__name__)
def test_every_number_has_both_bounds(kind: Any) -> None:
    hints = get_type_hints(kind)
    numbers = [f for f in fields(kind) if {"int", "float"} & {*words(hints[f.name])}]
    for number in numbers:
        about = number.metadata
        assert about["at_most"] is not None, number.name
        assert about["at_least"] is not None or about["above"] is not None, number.name


def words(hint: Any) -> list[str]:
    """The names of a type's parts."""
    return [
        part.__name__
        for part in (hint, *getattr(hint, "__args__", ()))
        if hasattr(part, "__name__")
    ]
