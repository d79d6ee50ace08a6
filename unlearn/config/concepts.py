"""Build the concepts that a configuration describes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from unlearn.concepts.concept import (
    AnchorConfig,
    Concept,
    ConceptConfig,
    build_concept,
    pair_anchors,
)
from unlearn.concepts.joint import join_concepts
from unlearn.concepts.vocabulary import load_vocabulary
from unlearn.config.sections import parse_section, to_container


class ConceptSections(NamedTuple):
    """The config sections `concept` and `anchor` of one concept that a model forgets."""

    concept: ConceptConfig
    anchor: AnchorConfig

    @property
    def anchors(self) -> dict[str, str]:
        """The anchor word of each target; "" stands for no style."""
        targets = self.concept.targets or [self.concept.name]
        return pair_anchors(targets, self.anchor, self.concept.kind == "style")


def trained_sections(config: DictConfig) -> list[dict[str, Any]]:
    """Return the sections `concept` and `anchor` of each concept that a run trains on.

    Raises:
        ValueError: no concept or no anchor is chosen.
    """
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
    """Return the sections `concept` and `anchor` of each concept that earlier runs forgot.

    Only a run that starts from the weights of an earlier run has any.
    """
    return list(to_container(config.get("earlier") or []))


def parse_concept(sections: dict[str, Any]) -> ConceptSections:
    """Return the sections `concept` and `anchor` as typed objects.

    Raises:
        ValueError: a value is not allowed; see `parse_section`.
    """
    return ConceptSections(
        parse_section(sections["concept"], "concept", ConceptConfig),
        parse_section(sections["anchor"], "anchor", AnchorConfig),
    )


def build_concepts(sections: Sequence[ConceptSections], known: str | None) -> Concept:
    """Return several concepts as one joint concept, checked against the model's vocabulary.

    Args:
        sections: the sections of each concept.
        known: the model's vocabulary, "emoji", or None where names are not checked.

    Raises:
        ValueError: there is no such vocabulary, or a concept is not valid; see `build_concept` and
            `join_concepts`.
    """
    if known not in (None, "emoji"):
        raise ValueError(f"model.vocabulary={known!r}: allowed are 'emoji' and null")
    words = load_vocabulary() if known else None
    return join_concepts([build_concept(concept, anchor, words) for concept, anchor in sections])
