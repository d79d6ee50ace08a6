"""Define units, and write durations as text."""

from __future__ import annotations

GIB = 2**30


def format_duration(seconds: float) -> str:
    """Return a duration as text, such as 1:05 or 2:03:04."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
