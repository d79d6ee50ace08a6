"""Build the concepts that a configuration names."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf

from unlearn.concepts.concept import AnchorConfig, Concept, ConceptConfig, build_concept
from unlearn.concepts.joint import join_concepts
from unlearn.concepts.vocabulary import vocabulary
from unlearn.config.sections import parse_section, to_container


def trained_sections(config: DictConfig) -> list[dict[str, Any]]:
    """The sections `concept` and `anchor` of each concept that a run trains on."""
    if "concepts" in config:
        return list(to_container(config.concepts))
    for key in ("concept", "anchor"):
        if OmegaConf.is_missing(config[key], "name"):
            raise ValueError(
                f"{key}.name is missing: choose a file of conf/{key} (concept=panda), or give "
                "concept.name=... and anchor.name=..."
            )
    return [{key: to_container(config[key]) for key in ("concept", "anchor")}]


def earlier_sections(config: DictConfig) -> list[dict[str, Any]]:
    """Those sections of what was forgotten before the run, by the runs that it goes on from."""
    return list(to_container(config.get("earlier") or []))


def build_run_concept(config: DictConfig, own: bool = False) -> Concept:
    """What the weights of a run forget, checked against what its model knows.

    Args:
        config: the run's.
        own: only what the run itself trains on, not what was forgotten before it.

    Raises:
        ValueError: see `parse_section`, `build_concept` and `join_concepts`.
    """
    chosen = (
        trained_sections(config) if own else [*earlier_sections(config), *trained_sections(config)]
    )
    known = config.model.vocabulary
    if known not in (None, "emoji"):
        raise ValueError(f"model.vocabulary={known!r}: allowed are 'emoji' and null")
    words = vocabulary() if known else None
    return join_concepts(
        [
            build_concept(
                parse_section(s["concept"], "concept", ConceptConfig),
                parse_section(s["anchor"], "anchor", AnchorConfig),
                words,
            )
            for s in chosen
        ]
    )
