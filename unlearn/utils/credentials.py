"""Secrets of the environment, such as WANDB_API_KEY: never written, never printed."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

SECRET = re.compile(r".*(api_?key|token|secret|password)", re.IGNORECASE)
LEAST = 8  # characters: a shorter value would be found in ordinary words


def is_secret(name: str) -> bool:
    """Whether a variable or a key is called as secrets are."""
    return bool(SECRET.fullmatch(name))


def environment_secrets() -> dict[str, str]:
    """The secrets of the environment, by their names."""
    return {k: v for k, v in os.environ.items() if is_secret(k) and len(v) >= LEAST}


def hide_secrets(text: str) -> str:
    """A text with the name of each secret in the place of its value."""
    for name, value in environment_secrets().items():
        text = text.replace(value, f"${name}")
    return text


def check_secrets(config: dict[str, Any]) -> None:
    """Refuse a config that holds a secret: it would be written to config.yaml, and to dashboards.

    Raises:
        ValueError: names the key and the variable.
    """
    hidden = environment_secrets()
    for key, value in nested_values(config):
        for name, secret in hidden.items():
            if secret in value:
                raise ValueError(
                    f"{key}: holds the value of the environment variable {name}, which would be "
                    "written to config.yaml; programs that need it read it from there"
                )


def nested_values(config: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every value of nested dictionaries and lists as text, with its dotted key."""
    if isinstance(config, dict | list):
        pairs = config.items() if isinstance(config, dict) else enumerate(config)
        for name, value in pairs:
            yield from nested_values(value, f"{key}.{name}".lstrip("."))
    else:
        yield key, str(config)
