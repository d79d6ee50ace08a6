"""Run `unlearn config`."""

from __future__ import annotations

from unlearn.cli.reference import describe_keys, find_keys

USAGE = "usage: unlearn config [KEY] [overrides]"


def run(arguments: list[str]) -> None:
    """Print the default, the meaning and the allowed values of keys.

    The arguments name one key or one section. Without a name every key is printed.

    Raises:
        ValueError: there is no such key, or an override is not valid.
    """
    names = [argument for argument in arguments if "=" not in argument]
    overrides = [argument for argument in arguments if "=" in argument]
    if len(names) > 1:
        raise ValueError(USAGE)
    keys = describe_keys(overrides)
    chosen = find_keys(names[0].rstrip("."), keys) if names else keys
    print("\n\n".join(map(str, chosen)))
