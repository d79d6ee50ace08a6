"""Config sections as plain containers and as checked objects."""

from __future__ import annotations

from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

Schema = TypeVar("Schema")


def plain(config: Any) -> Any:
    """A config as plain containers, interpolations resolved."""
    if not OmegaConf.is_config(config):
        return config
    return OmegaConf.to_container(config, resolve=True)


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
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        name = ".".join(filter(None, (key, getattr(error, "full_key", None))))
        raise ValueError(f"{name}: {reason}") from error
