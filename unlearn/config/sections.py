"""Config sections as plain containers and as checked objects."""

from __future__ import annotations

from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from unlearn.utils.checks import unknown_key_message

Schema = TypeVar("Schema")


def to_container(config: Any) -> Any:
    """A config as plain containers, interpolations resolved."""
    if not OmegaConf.is_config(config):
        return config
    return OmegaConf.to_container(config, resolve=True)


def config_to_save(config: Any) -> dict[str, Any]:
    """What is kept of a run's config: all of it, resolved, without how this call treats it."""
    return {key: v for key, v in to_container(config).items() if key != "resume"}


def parse_section(config: Any, key: str, schema: type[Schema]) -> Schema:
    """A config section as a `schema` object.

    Args:
        config: the section.
        key: its name, for the message.
        schema: a dataclass.

    Raises:
        ValueError: a value is missing, has the wrong type, or has no place in the schema.
    """
    try:
        typed = OmegaConf.merge(OmegaConf.structured(schema), to_container(config))
        return OmegaConf.to_object(typed)  # type: ignore[return-value]
    except ConfigKeyError as error:
        name, given = str(error.full_key), OmegaConf.create(to_container(config))
        known = [str(k) for k in error.parent_node or ()]
        said = OmegaConf.select(given, name)
        raise ValueError(unknown_key_message(f"{key}.{name}".lstrip("."), said, known)) from error
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
            raise ValueError(unknown_key_message(str(key), config[key], known))
    for key in known:
        if key not in config and not (key == "anchor" and "concepts" in config):
            raise ValueError(f"{key} is missing: conf/train.yaml has it")
