"""Compose a configuration as the command line does."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from unlearn.config import recipes  # noqa: F401 - registers a resolver
from unlearn.config.concepts import earlier_sections, trained_sections
from unlearn.config.overrides import check_overrides, hydra_errors_as_value_errors
from unlearn.config.saved import earlier_run_dir
from unlearn.config.search_path import conf_dir
from unlearn.config.vocabulary_words import anchor_overrides

OmegaConf.register_new_resolver(  # conf/train.yaml uses it in `run_dir`
    "then", lambda after: f"{earlier_run_dir(after).name}-then-" if after else "", replace=True
)


def compose(overrides: list[str], root: str = "train") -> DictConfig:
    """Return the configuration that the command line would compose from the overrides.

    The override `concept=[a,b]` gives one configuration for both concepts.

    Args:
        overrides: as on the command line.
        root: the name of a file at the top of conf/.

    Raises:
        ValueError: see `hydra_errors_as_value_errors`, `split_concept_list` and
            `check_compatible_kinds`.
    """
    with (
        hydra_errors_as_value_errors(overrides),
        hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"),
    ):
        check_overrides(overrides)
        names, rest = split_concept_list(overrides)
        if not names:
            return hydra.compose(root, overrides)
        configs = [
            hydra.compose(root, [*anchor_overrides(name, names), *rest, f"concept={name}"])
            for name in names
        ]
    check_compatible_kinds(configs)
    return OmegaConf.create(join_configs(configs))


def split_concept_list(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split overrides into the names of `concept=[a,b]` and the other overrides.

    Without such a list, return no names and all overrides.

    Raises:
        ValueError: the list is empty, or another override changes the concept or the anchor.
    """
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    lists = [o.value() for o in parsed if o.key_or_group == "concept"]
    if not lists or not isinstance(chosen := lists[-1], list):
        return [], list(overrides)
    names = [str(name) for name in chosen]
    if not names or not all(isinstance(name, str) for name in chosen):
        raise ValueError(
            f"concept=[{','.join(names)}]: at least one concept is needed, and nothing but names"
        )
    rest = [o for o in parsed if o.key_or_group != "concept"]
    for override in rest:
        if len(names) > 1 and re.match(r"(concept|anchor)\b", override.key_or_group):
            raise ValueError(
                f"{override.input_line}: it would hold for each of concept={names}; a file of "
                "one's own says it for one (unlearn new-concept NAME)"
            )
    return names, [str(o.input_line) for o in rest]


def join_configs(configs: Sequence[DictConfig]) -> dict[str, Any]:
    """Return one configuration for several concepts, as unresolved plain containers.

    Args:
        configs: one composed configuration a concept.

    Returns:
        The configuration with the most steps, the first of equals, so that settings which were
        chosen together stay together. Its `concept.kind` is the kind whose settings it has. Its
        `concepts` holds the sections of every concept.
    """
    longest: Any = max(configs, key=lambda c: c.get("steps") or 0)
    joint: dict[str, Any] = OmegaConf.to_container(longest)  # type: ignore[assignment]
    if len(configs) == 1:
        return joint
    concepts = [s for c in configs for s in (*earlier_sections(c), *trained_sections(c))]
    name = "+".join(s["concept"]["name"] for s in concepts)
    joint["concept"] = {"name": name, "kind": joint["concept"]["kind"]}
    joint["concepts"] = concepts
    for key in ("anchor", "earlier"):
        joint.pop(key, None)
    return joint


def check_compatible_kinds(configs: Sequence[DictConfig]) -> None:
    """Refuse concepts whose kinds want another form of the method, not only other numbers.

    Raises:
        ValueError: an option of the method that is text differs; names the option, and its value
            for each concept.
    """
    for key in configs[0].get("method") or {}:
        values = {c.concept.name: c.method[key] for c in configs}
        if len({*values.values()}) > 1 and any(isinstance(v, str) for v in values.values()):
            raise ValueError(
                f"concept={list(values)}: method.{key} differs by kind: {values}; "
                f"method.{key}=... sets it for all"
            )
