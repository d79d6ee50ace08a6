"""Read YAML and JSON that a stranger, or another program, may have written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

MOST_NODES = 100_000  # values of a file, each alias counted as a copy
DEEPEST = 50  # levels of lists and mappings
LARGEST = 2**26  # bytes of a text file
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's, where PyYAML has it
Parsed = TypeVar("Parsed")


class Extent(NamedTuple):
    """How many values a part of a YAML text stands for, and how deep they nest."""

    nodes: int
    depth: int


@contextmanager
def damage_as_value_errors(path: Path) -> Iterator[None]:
    """Raise a ValueError that names the file in place of any error of reading a damaged file.

    Args:
        path: the file that the body of the `with` statement reads.

    Raises:
        ValueError: the body raised an error.
    """
    try:
        yield
    except Exception as error:  # of any kind: a stranger may have written the file
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: damaged ({type(error).__name__}: {reason})") from error


def read_text(path: Path) -> str:
    """Return the text of a file in UTF-8, with or without a byte-order mark.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is too large, or not in UTF-8.
    """
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{path}: is larger than {LARGEST >> 20} MiB")
    return path.read_text(encoding="utf-8-sig")


def read_json(path: Path, schema: type[Parsed]) -> Parsed:
    """Return the content of a JSON file, checked against a type.

    Args:
        path: the file.
        schema: a type that pydantic checks, such as a `TypedDict`.

    Raises:
        ValueError: the file is missing or damaged; names the file, the key, and what is allowed.
    """
    with damage_as_value_errors(path):
        text = read_text(path)
        try:
            return TypeAdapter(schema).validate_json(text, strict=True)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            key = ".".join(map(str, first["loc"]))
            given = (
                "" if first["type"] in ("missing", "json_invalid") else f"={first['input']!r:.80}"
            )
            raise ValueError(f"{key}{given}: {first['msg']}".lstrip(": ")) from error


def parse_yaml(text: str, name: str) -> Any:
    """Return the value of a YAML text.

    Args:
        text: the text.
        name: what to call the text in messages, such as the file's path.

    Raises:
        ValueError: the text is no YAML, or see `check_yaml_size`; begins with `name`.
    """
    check_yaml_size(text, name)
    try:
        return LOADER(text).get_single_data()
    except (yaml.YAMLError, ValueError) as error:  # ValueError: of a date that there is not
        raise ValueError(f"{name}: not YAML: {' '.join(str(error).split())}") from error


def check_yaml_size(text: str, name: str) -> None:
    """Refuse a YAML text that nests deeply, holds itself, or stands for too many values.

    A few lines with aliases of aliases can stand for billions of values. A text that is no YAML
    passes.

    Args:
        text: the text.
        name: what to call the text in messages, such as the file's path.

    Raises:
        ValueError: the text is refused; begins with `name`.
    """
    anchors: dict[str, Extent] = {}
    open_nodes: list[tuple[str | None, Extent]] = [(None, Extent(0, 0))]  # the text, then inwards
    try:
        for event in yaml.parse(text, Loader=LOADER):
            if isinstance(event, yaml.CollectionStartEvent):
                open_nodes.append((event.anchor, Extent(1, 1)))
                extent = Extent(0, 0)
            elif isinstance(event, yaml.CollectionEndEvent):
                anchor, extent = open_nodes.pop()
                anchors |= {anchor: extent} if anchor else {}
            elif isinstance(event, yaml.ScalarEvent):
                extent = Extent(1, 1)
                anchors |= {event.anchor: extent} if event.anchor else {}
            elif isinstance(event, yaml.AliasEvent):
                if event.anchor in [anchor for anchor, _ in open_nodes]:
                    raise ValueError(f"{name}: holds itself, by the alias *{event.anchor}")
                extent = anchors.get(event.anchor, Extent(1, 1))
            else:
                continue
            if len(open_nodes) + extent.depth > DEEPEST + 2:
                raise ValueError(f"{name}: nested more than {DEEPEST} deep")
            anchor, outer = open_nodes[-1]
            grown = Extent(outer.nodes + extent.nodes, max(outer.depth, 1 + extent.depth))
            open_nodes[-1] = anchor, grown
            if grown.nodes > MOST_NODES:
                raise ValueError(f"{name}: stands for more than {MOST_NODES} values")
    except (yaml.YAMLError, UnicodeEncodeError) as error:
        if "maximum nesting depth" in str(error):  # libyaml gives up
            raise ValueError(f"{name}: nested more than {DEEPEST} deep") from error
