"""What the experiments' command lines have in common."""

from __future__ import annotations

import argparse


def positive(text: str) -> int:
    """A whole number of at least 1, as a type of `argparse`.

    Raises:
        ArgumentTypeError: it is none.
    """
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


def end(errors: dict[str, str]) -> None:
    """End the program in failure where runs have failed.

    Args:
        errors: of the runs that failed, by name.

    Raises:
        SystemExit: there are some.
    """
    if errors:
        failed = "".join(f"\n  {name}: {error}" for name, error in errors.items())
        raise SystemExit(f"{len(errors)} runs failed; the same command tries them again:{failed}")
