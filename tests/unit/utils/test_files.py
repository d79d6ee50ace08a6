"""YAML and JSON of strangers: what is refused, and what is read as it stands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typing_extensions import TypedDict

from unlearn.utils.files import DEEPEST, MOST_NODES, parse_yaml, read_json, read_text


class Pair(TypedDict):
    """A type to read."""

    name: str
    count: int


@pytest.mark.parametrize("value", [None, 5, "x", [1, [2.5, "a"]], {"a": {"b": [True, None]}}])
def test_a_value_is_read_as_it_was_written(value: object) -> None:
    assert parse_yaml(yaml.safe_dump(value), "x") == value


def test_an_alias_is_a_copy() -> None:
    assert parse_yaml("a: &x [1, 2]\nb: *x\n", "x") == {"a": [1, 2], "b": [1, 2]}


def test_every_alias_counts_as_a_copy() -> None:
    inner = ", ".join(["1"] * (MOST_NODES // 10))
    text = f"a: &x [{inner}]\nb: [{', '.join(['*x'] * 8)}]\n"
    assert len(parse_yaml(text, "x")["b"]) == 8
    with pytest.raises(ValueError, match=f"^x: stands for more than {MOST_NODES} values$"):
        parse_yaml(text.replace("*x]", "*x, *x]"), "x")


def test_depth_is_limited_and_a_circle_is_endless() -> None:
    parse_yaml("[" * DEEPEST + "]" * DEEPEST, "x")
    for text in ("[" * (DEEPEST + 2) + "]" * (DEEPEST + 2), "[" * 5000, "&a [*a]", "a: &b {c: *b}"):
        with pytest.raises(ValueError, match=r"^x: (nested more than|holds itself|not YAML)"):
            parse_yaml(text, "x")


@pytest.mark.parametrize("text", ["a: [", "\x00", "a: b: c", "2026-99-99", "!!python/none"])
def test_what_is_no_yaml_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^x: not YAML"):
        parse_yaml(text, "x")


def test_json_is_checked_against_its_type(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"name": "x", "count": 3}))
    assert read_json(path, Pair) == {"name": "x", "count": 3}
    for text, message in (
        ('{"name": "x"}', "count: Field required"),
        ('{"name": "x", "count": "3"}', "count='3': Input should be a valid integer"),
        ("{", "Invalid JSON"),
        ("[" * 9000, "Invalid JSON"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=rf"a\.json: damaged \(ValueError: {message}"):
            read_json(path, Pair)


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbfa panda")
    assert read_text(tmp_path / "a") == "a panda"
