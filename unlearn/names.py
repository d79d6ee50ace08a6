"""Unknown names, refused with the nearest valid ones."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from unlearn.credentials import is_secret


def hint(name: str, known: Sequence[str]) -> str:
    """The valid names most like `name`, as a question; where none is, the first ones."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or list(known[:8])
    return f"did you mean one of {near}?"


def check(key: str, value: str, known: Sequence[str]) -> None:
    """Refuse an unknown name, naming the nearest valid ones.

    Raises:
        ValueError: `value` is not in `known`.
    """
    if value not in known:
        raise ValueError(f"{key}={value!r} is unknown; {hint(str(value), known)}")


def unknown_key(key: str, value: object, known: Sequence[str]) -> str:
    """That there is no such key; a value that its key calls a secret is not repeated."""
    said = "***" if is_secret(key) else value
    return f"{key}={said}: there is no such key; {hint(key.rpartition('.')[2], known)}"
