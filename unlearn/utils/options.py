"""Describe an option once: its default, its bounds and its meaning."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import MISSING, Field, field, fields
from typing import Any

from unlearn.utils.checks import bounds_in_words, check_choice, check_number

REQUIRED = "???"  # OmegaConf's mark of a value that must be given


def option(
    default: Any = REQUIRED,
    *,
    help: str,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    choices: Sequence[str] = (),
) -> Any:
    """Return a dataclass field that carries its meaning and its allowed values.

    Args:
        default: the value where none is given; without a default, the option must be given.
        help: one line that says what the option is.
        at_least: the smallest allowed value.
        above: a bound that every allowed value is larger than.
        at_most: the largest allowed value.
        choices: the allowed values, where only these are allowed.
    """
    about = {"help": help, "at_least": at_least, "above": above, "at_most": at_most}
    metadata = {**about, "choices": tuple(choices)}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def check_options(options: Any, section: str = "") -> None:
    """Refuse a dataclass of options with a value that is not allowed.

    Args:
        options: a dataclass whose fields `option` made; None is an allowed value of every field.
        section: the section of the configuration that holds the options, for the message.

    Raises:
        ValueError: a value is refused; the message names the key, the value and what is allowed.
    """
    for each in fields(options):
        value, about = getattr(options, each.name), each.metadata
        key = f"{section}.{each.name}".lstrip(".")
        if about.get("choices") and value is not None:
            check_choice(key, value, about["choices"])
        elif isinstance(value, int | float) and not isinstance(value, bool):
            bounds = {name: about.get(name) for name in ("at_least", "above", "at_most")}
            check_number(key, value, **bounds)
        elif isinstance(value, dict | list):
            for inner, number in nested_numbers(value, key):
                check_number(inner, number)


def nested_numbers(value: Any, key: str) -> Iterator[tuple[str, float]]:
    """Yield each number of nested dictionaries and lists after its dotted key."""
    if isinstance(value, dict | list):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from nested_numbers(inner, f"{key}.{name}")
    elif isinstance(value, int | float):
        yield key, value


def allowed_values(each: Field[Any]) -> str:
    """Return the allowed values of an option in words; "" where its type is the only limit."""
    about = each.metadata
    if about.get("choices"):
        return ", ".join(about["choices"])
    return ", ".join(bounds_in_words(*(about.get(k) for k in ("at_least", "above", "at_most"))))


def default_of(each: Field[Any]) -> Any:
    """Return the default of an option; `REQUIRED` where the option must be given."""
    if each.default_factory is not MISSING:
        return each.default_factory()
    return REQUIRED if each.default is MISSING else each.default
