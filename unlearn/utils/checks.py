"""Unknown names, refused with the nearest valid ones."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence

from unlearn.utils.credentials import is_secret


def suggest(name: str, known: Sequence[str]) -> str:
    """The valid names most like `name`, as a question; where none is, the first ones."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or list(known[:8])
    return f"did you mean one of {near}?"


def check_choice(key: str, value: str, known: Sequence[str]) -> None:
    """Refuse an unknown name, naming the nearest valid ones.

    Raises:
        ValueError: `value` is not in `known`.
    """
    if value not in known:
        raise ValueError(f"{key}={value!r} is unknown; {suggest(str(value), known)}")


def unknown_key_message(key: str, value: object, known: Sequence[str]) -> str:
    """That there is no such key; a value that its key calls a secret is not repeated."""
    said = "***" if is_secret(key) else value
    return f"{key}={said}: there is no such key; {suggest(key.rpartition('.')[2], known)}"


def check_number(key: str, value: float, *, positive: bool = False, most: float = math.inf) -> None:
    """Refuse what is no rate or factor.

    Raises:
        ValueError: `value` is negative, infinite, NaN or more than `most`, or where it is to be
            `positive`, 0.
    """
    if not (0 <= value <= most and value < math.inf) or (positive and not value):
        least = "more than 0" if positive else "at least 0"
        bound = "" if most == math.inf else f" and at most {most:g}"
        raise ValueError(f"{key}={value}: a finite number of {least}{bound} is needed")
