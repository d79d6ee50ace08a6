"""Keep the environment's secrets, such as WANDB_API_KEY, out of files and messages."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

SECRET = re.compile(  # anywhere in a name; a tokenizer's name holds no secret
    r"secret|token(?!i)|passw(or)?d|passphrase|credential|(api|access|private)[_-]?key",
    re.IGNORECASE,
)
LEAST_SECRET_LENGTH = 8  # characters: a shorter secret would match parts of ordinary words


def is_secret(name: str) -> bool:
    """Tell whether the name of a variable or of a key is one that secrets have."""
    return bool(SECRET.search(name))


def environment_secrets() -> dict[str, str]:
    """Return the values of the environment's secrets, by variable name."""
    return {k: v for k, v in os.environ.items() if is_secret(k) and len(v) >= LEAST_SECRET_LENGTH}


def hide_secrets(text: str) -> str:
    """Return the text with each secret replaced by `$` and the name of its variable."""
    for name, value in environment_secrets().items():
        text = text.replace(value, f"${name}")
    return text


def check_secrets(config: dict[str, Any]) -> None:
    """Refuse values that hold a secret, which would reach files, the terminal and dashboards.

    Raises:
        ValueError: a value holds a secret; the message names the key and the variable.
    """
    hidden = environment_secrets()
    for key, value in nested_values(config):
        for name, secret in hidden.items():
            if secret in value:
                raise ValueError(
                    f"{key}: holds the value of the environment variable {name}, which would be "
                    "written to a file or shown; programs that need it read it from there"
                )


def check_arguments(arguments: Sequence[str]) -> None:
    """Refuse a command line that holds a secret.

    Raises:
        ValueError: an argument holds a secret; the message names its key, or else its place.
    """
    for number, argument in enumerate(arguments, 1):
        key, sign, _ = argument.partition("=")
        named = sign and hide_secrets(key) == key
        check_secrets({key.lstrip("+~") if named else f"argument {number}": argument})


def nested_values(config: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield every value of nested dictionaries and lists as text, after its dotted key."""
    if isinstance(config, dict | list):
        pairs = config.items() if isinstance(config, dict) else enumerate(config)
        for name, value in pairs:
            yield from nested_values(value, f"{key}.{name}".lstrip("."))
    else:
        yield key, str(config)
