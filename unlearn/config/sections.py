"""Turn sections of a configuration into plain containers and typed objects."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import (
    ConfigKeyError,
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from unlearn.utils.checks import unknown_key_message
from unlearn.utils.options import check_options

Schema = TypeVar("Schema")


def to_container(config: Any, resolve: bool = True) -> Any:
    """Return a configuration as plain containers, with interpolations resolved or as they are.

    Raises:
        ValueError: an interpolation cannot be resolved; one line.
    """
    if not OmegaConf.is_config(config):
        return config
    try:
        return OmegaConf.to_container(config, resolve=resolve)
    except InterpolationResolutionError as error:
        raise ValueError(resolver_reason(error)) from error


def parse_section(config: Any, key: str, schema: type[Schema]) -> Schema:
    """Return a config section as an object of a dataclass, with its values checked.

    Args:
        config: the section.
        key: the section's name, for messages.
        schema: a dataclass whose fields are made by `option`.

    Raises:
        ValueError: a value is missing, has the wrong type or is out of its bounds, or the dataclass
            has no such option; names the key, the value and what is allowed.
    """
    given = to_container(config)
    try:
        structure = OmegaConf.structured(schema)
        OmegaConf.set_readonly(structure, None)  # a frozen dataclass makes it read-only
        parsed = OmegaConf.to_object(OmegaConf.merge(structure, given))
    except OmegaConfBaseException as error:
        own = str(error.full_key or "")
        name = ".".join(filter(None, (key, own)))
        value = OmegaConf.select(OmegaConf.create(given), own) if own else given
        if isinstance(error, ConfigKeyError):
            known = [str(k) for k in error.parent_node or ()]
            raise ValueError(unknown_key_message(name, value, known)) from error
        if isinstance(error, MissingMandatoryValue):
            raise ValueError(f"{name} is missing: a value must be given") from error
        reason = str(error).splitlines()[0]
        said = name if f"'{value}'" in reason else f"{name}={value}"
        raise ValueError(f"{said}: {reason}") from error
    check_options(parsed, key)
    return parsed  # type: ignore[return-value]


def resolver_reason(error: InterpolationResolutionError) -> str:
    """Return the message that a resolver of this package raised; of another, with the key."""
    text = str(error).partition("\n")[0]
    return text.partition("interpolation: ")[2] or f"{error.full_key}: {text}"


def check_keys(config: Iterable[Any], known: Sequence[str]) -> None:
    """Refuse a configuration that has other keys than `known`, or lacks one of them.

    A configuration of several concepts has the key `concepts` in place of `anchor`.

    Raises:
        ValueError: names the key.
    """
    values: Any = config
    for key in values:
        if key not in (*known, "concepts", "earlier"):
            raise ValueError(unknown_key_message(str(key), values[key], known))
    for key in known:
        if key not in values and not (key == "anchor" and "concepts" in values):
            raise ValueError(f"{key} is missing: conf/train.yaml has it")
