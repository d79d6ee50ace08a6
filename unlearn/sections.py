"""Config sections as plain containers and as checked objects."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException
from yaml import YAMLError

from unlearn.names import unknown_key

Schema = TypeVar("Schema")


def plain(config: Any) -> Any:
    """A config as plain containers, interpolations resolved."""
    if not OmegaConf.is_config(config):
        return config
    return OmegaConf.to_container(config, resolve=True)


def lasting(config: Any) -> dict[str, Any]:
    """What is kept of a run's config: all of it, resolved, without how this call treats it.

    And without the settings of all methods: `steps` and `method` have those of this one.
    """
    kept = {key: v for key, v in plain(config).items() if key != "resume"}
    del kept["model"]["settings"]
    return kept


def section(config: Any, key: str, schema: type[Schema]) -> Schema:
    """A config section as a `schema` object.

    Args:
        config: the section.
        key: its name, for the message.
        schema: a dataclass.

    Raises:
        ValueError: a value is missing, has the wrong type, or has no place in the schema.
    """
    try:
        typed = OmegaConf.merge(OmegaConf.structured(schema), plain(config))
        return OmegaConf.to_object(typed)  # type: ignore[return-value]
    except ConfigKeyError as error:
        name, given = str(error.full_key), OmegaConf.create(plain(config))
        known = [str(k) for k in error.parent_node or ()]
        said = OmegaConf.select(given, name)
        raise ValueError(unknown_key(f"{key}.{name}".lstrip("."), said, known)) from error
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        name = ".".join(filter(None, (key, getattr(error, "full_key", None))))
        raise ValueError(f"{name}: {reason}") from error


def check_keys(config: Any, known: list[str]) -> None:
    """Refuse a config that has other keys than `known`, or lacks one.

    Those of several concepts have `concepts` in the place of `anchor`, and may have `earlier`.

    Raises:
        ValueError: names the key.
    """
    for key in config:
        if key not in (*known, "concepts", "earlier"):
            raise ValueError(unknown_key(str(key), config[key], known))
    for key in known:
        if key not in config and not (key == "anchor" and "concepts" in config):
            raise ValueError(f"{key} is missing: conf/train.yaml has it")


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


def read_config(path: Path) -> DictConfig:
    """The config.yaml of a run.

    Raises:
        ValueError: it is none; names the file.
    """
    try:
        config = OmegaConf.load(path)
    except (OSError, UnicodeDecodeError, YAMLError, OmegaConfBaseException) as error:
        raise ValueError(f"{path}: not a run's: {' '.join(str(error).split())}") from error
    if not isinstance(config, DictConfig):
        raise ValueError(f"{path}: not a run's: it holds no keys")
    for key in ("concept", "model", "method", "trainer", "evaluation"):
        if not OmegaConf.is_config(config.get(key)):
            raise ValueError(f"{path}: not a run's: it has no section {key!r}")
    return config
