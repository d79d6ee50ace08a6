"""Refuse unknown names and numbers out of bounds, and suggest valid ones."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence

from unlearn.utils.credentials import is_secret

MOST_NAMED = 8  # names in a message where none is like the one given


def suggest(name: str, known: Sequence[str]) -> str:
    """Return a question that suggests the valid names most like `name`.

    Where no valid name is like `name`, return a sentence with the first valid ones.
    """
    if near := difflib.get_close_matches(name, known, n=3, cutoff=0.4):
        return f"did you mean {in_words(near)}?"
    more = ", and more" if len(known) > MOST_NAMED else ""
    return f"there are {in_words(known[:MOST_NAMED], 'and')}{more}" if known else "there is none"


def in_words(names: Iterable[str], joint: str = "or") -> str:
    """Return names in quotes, with commas and a word between them: 'a', 'b' or 'c'."""
    *first, last = [repr(str(name)) for name in names]
    return f"{', '.join(first)} {joint} {last}" if first else last


def check_choice(key: str, value: str, known: Sequence[str]) -> None:
    """Refuse an unknown name, and suggest the nearest valid ones.

    Raises:
        ValueError: `value` is not in `known`.
    """
    if value not in known:
        raise ValueError(f"{key}={value!r} is unknown; {suggest(str(value), known)}")


def unknown_key_message(key: str, value: object, known: Sequence[str]) -> str:
    """Return the message that a configuration has no such key, with the nearest valid keys.

    The message holds the value, unless the key's name says that the value is a secret.
    """
    said = "***" if is_secret(key) else value
    return f"{key}={said}: there is no such key; {suggest(key.rpartition('.')[2], known)}"


def bounds_in_words(
    at_least: float | None, above: float | None, at_most: float | None
) -> list[str]:
    """Return each bound that there is as text, such as "at least 1"; whole numbers in full."""
    return [
        f"{words} {bound if isinstance(bound, int) else f'{bound:g}'}"
        for words, bound in (("at least", at_least), ("more than", above), ("at most", at_most))
        if bound is not None
    ]


def check_number(
    key: str,
    value: float,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
) -> None:
    """Refuse a number that is not finite or is out of its bounds.

    Raises:
        ValueError: the number is refused; the message names the key, the value and the bounds.
    """
    too_small = (at_least is not None and value < at_least) or (
        above is not None and value <= above
    )
    too_large = at_most is not None and value > at_most
    if math.isfinite(value) and not too_small and not too_large:
        return
    bounds = " and ".join(bounds_in_words(at_least, above, at_most))
    if isinstance(value, float):
        bounds = f"a finite number of {bounds}" if bounds else "a finite number"
    raise ValueError(f"{key}={value}: {bounds} is needed")
