"""From a composed Hydra config to checked objects: what is not valid is refused before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import hydra
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from unlearn.concepts import AnchorConfig, Concept, ConceptConfig, build_concept
from unlearn.vocabulary import vocabulary

Schema = TypeVar("Schema")


def section(config: DictConfig, key: str, schema: type[Schema]) -> Schema:
    """The section `key` of a config as a `schema` object.

    Raises:
        ValueError: a value is missing, has the wrong type, or has no place in the schema.
    """
    try:
        typed = OmegaConf.merge(OmegaConf.structured(schema), config[key])
        return OmegaConf.to_object(typed)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        name = f"{key}.{error.full_key}" if getattr(error, "full_key", None) else key
        raise ValueError(f"{name}: {reason}") from error


def concept_of(config: DictConfig) -> Concept:
    """The concept and the anchor of a run, checked against what its model knows.

    Raises:
        ValueError: see `section` and `build_concept`.
    """
    for key in ("concept", "anchor"):
        if OmegaConf.is_missing(config[key], "name"):
            raise ValueError(
                f"{key}.name is missing: choose a file of conf/{key} (concept=panda), or give "
                "concept.name=... and anchor.name=..."
            )
    known = config.model.vocabulary
    if known not in (None, "emoji"):
        raise ValueError(f"model.vocabulary={known!r}: allowed are 'emoji' and null")
    return build_concept(
        section(config, "concept", ConceptConfig),
        section(config, "anchor", AnchorConfig),
        vocabulary() if known else None,
    )


def conf_dir() -> Path:
    """The folder of the configs: beside the package in a checkout, inside it in a wheel."""
    inside = Path(__file__).parent / "conf"
    return inside if inside.exists() else Path(__file__).parents[1] / "conf"


def shipped_concepts() -> list[str]:
    """What `concept=` takes, without `custom`."""
    folder = conf_dir() / "concept"
    names = (p.relative_to(folder).with_suffix("").as_posix() for p in folder.rglob("*.yaml"))
    return sorted(name for name in names if name != "custom")


def embedded_concepts() -> list[str]:
    """The shipped concepts of the embedded model: those whose anchor has no prompt pack."""
    names = shipped_concepts()
    return [n for n in names if compose([f"concept={n}"]).anchor.prompts is None]


def compose(overrides: list[str], root: str = "train") -> DictConfig:
    """The config that the command line would compose."""
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return hydra.compose(root, overrides)


def plain(config: Any) -> dict[str, Any]:
    """A config section as a plain dict, interpolations resolved."""
    return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]
