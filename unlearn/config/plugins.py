"""Check the loggers and callbacks that a configuration names by `_target_`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from hydra.errors import HydraException
from hydra.utils import get_class
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger

from unlearn.utils.checks import unknown_key_message
from unlearn.utils.credentials import is_secret, nested_values

TargetEntries = dict[str, dict[str, Any]]


def parse_loggers(section: Mapping[str, Any]) -> TargetEntries:
    """Return the entries of the section `logger` by name, each checked.

    Raises:
        ValueError: an entry names no logger, or needs an extra that is not installed.
    """
    for name, entry in section.items():
        kind = target_class("logger", name, entry, Logger)
        if issubclass(kind, TensorBoardLogger) and find_spec("tensorboard") is None:
            raise ValueError(f"logger.{name}: the extra `tensorboard` is not installed")
        if hasattr(kind, "check_options"):  # a logger of this package
            kind.check_options(f"logger.{name}", entry)
    return dict(section)


def parse_callbacks(section: Mapping[str, Any]) -> TargetEntries:
    """Return the entries of the section `callbacks` by name, each checked.

    Raises:
        ValueError: an entry names no callback, or a callback that writes checkpoints of its own.
    """
    for name, entry in section.items():
        if issubclass(target_class("callbacks", name, entry, Callback), Checkpoint):
            raise ValueError(
                f"callbacks.{name}._target_={entry['_target_']}: a run writes its own "
                "checkpoints (checkpoint_every), and weights on the way (keep_every)"
            )
    return dict(section)


def target_class(section: str, name: str, entry: Any, kind: type) -> type:
    """Return the class that an entry names by `_target_`.

    Args:
        section: the name of the entry's section, for messages.
        name: the entry's name, for messages.
        entry: the entry.
        kind: the class that the named class must derive from.

    Raises:
        ValueError: the entry has no `_target_`, or the class cannot be imported, does not derive
            from `kind` or does not take a key of the entry; or an option is called as secrets are.
    """
    key = f"{section}.{name}"
    if not isinstance(entry, Mapping) or not isinstance(entry.get("_target_"), str):
        said = [*entry] if isinstance(entry, Mapping) else "***" if is_secret(key) else entry
        raise ValueError(f"{key}={said}: an entry with the path of a class as _target_ is needed")
    for option, _ in nested_values(entry):
        if is_secret(option):
            raise ValueError(
                f"{key}.{option}=***: would be written to config.yaml; programs that need a secret "
                "read it from the environment"
            )
    try:
        found = get_class(entry["_target_"])
    except (HydraException, ImportError, ValueError, AttributeError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{key}._target_={entry['_target_']}: {reason}") from error
    if not issubclass(found, kind):
        raise ValueError(f"{key}._target_={entry['_target_']}: is no {kind.__name__} of Lightning")
    check_arguments(key, found, entry)
    return found


def check_arguments(key: str, kind: type, entry: Mapping[str, Any]) -> None:
    """Refuse keys of an entry that its class does not take.

    Raises:
        ValueError: the class has no such argument. The message names the key, the value and the
            nearest arguments.
    """
    parameters = inspect.signature(kind).parameters
    if any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
        return
    for name, value in entry.items():
        if not name.startswith("_") and name not in parameters:
            raise ValueError(unknown_key_message(f"{key}.{name}", value, list(parameters)))


def shows_images(entry: Mapping[str, Any]) -> bool:
    """Return whether a logger can show images: TensorBoard and W&B can."""
    return issubclass(get_class(entry["_target_"]), TensorBoardLogger | WandbLogger)
