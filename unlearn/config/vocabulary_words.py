"""Make every word of the embedded model's vocabulary a concept and an anchor.

A word without a file in conf/concept is the concept that `concept=WORD` names. Its anchor is
`Vocabulary.anchor`'s, and its neighbours are its family, as of any concept that names none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigResult, ConfigSource
from omegaconf import OmegaConf

from unlearn.concepts.vocabulary import load_vocabulary
from unlearn.config.search_path import VOCABULARY_SCHEME, group_choices

GROUPS = ("concept", "anchor")


class VocabularySource(ConfigSource):
    """The last folder of Hydra's search path: a file for each word, made when it is read."""

    @staticmethod
    def scheme() -> str:
        """Return the scheme of the search path's entry."""
        return VOCABULARY_SCHEME

    def available(self) -> bool:
        """Return that the vocabulary is always there."""
        return True

    def is_group(self, config_path: str) -> bool:
        """Return whether a path is `concept` or `anchor`."""
        return config_path.rstrip("/") in GROUPS

    def is_config(self, config_path: str) -> bool:
        """Return whether a path is a word in such a group."""
        group, _, word = config_path.removesuffix(".yaml").partition("/")
        return group in GROUPS and word in words()

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """Return the words, where files of a group are asked for."""
        return words() if self.is_group(config_path) and results_filter != ObjectType.GROUP else []

    def load_config(self, config_path: str) -> ConfigResult:
        """Return what a file of conf/ would say of the word."""
        group, _, word = config_path.removesuffix(".yaml").partition("/")
        node: dict[str, Any] = {"defaults": ["custom", "_self_"], "name": word}
        if group == "concept":
            known = load_vocabulary()
            anchor = {"override /anchor@_global_.anchor": known.anchor(word)}
            node["defaults"].append(anchor)
            node["kind"] = "style" if word in known.styles else "instance"
        return ConfigResult(
            provider=self.provider,
            path=self.full_path(),
            config=OmegaConf.create(node),
            header={"package": None},
        )


def words() -> list[str]:
    """Return the words that the embedded model knows: its objects and its styles."""
    known = load_vocabulary()
    return [*known.names, *known.styles]


def anchor_overrides(word: str, forgotten: Sequence[str]) -> list[str]:
    """Return the override that gives a word an anchor which is not forgotten beside it, if needed.

    Args:
        word: the name of a concept.
        forgotten: the names of all concepts of the run.
    """
    if word not in words() or word in group_choices("concept"):
        return []
    return [f"anchor={load_vocabulary().anchor(word, forgotten)}"]
