"""Make every word of the embedded model's vocabulary a concept and an anchor.

A word without a file in conf/concept is the concept that `concept=WORD` names. Its anchor is
`Vocabulary.anchor`'s, and its neighbours are its family, as of any concept that names none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra.core.config_store import ConfigStore

from unlearn.concepts.vocabulary import load_vocabulary
from unlearn.config.search_path import group_choices


def register_words() -> None:
    """Register with Hydra each word that has no file, as files of conf/ would describe it.

    Called before each composition, since the working folder's files may have changed: Hydra takes
    no file beside a registered entry of its name.
    """
    store, known = ConfigStore.instance(), load_vocabulary()
    nodes: dict[str, dict[str, Any]] = {"concept": {}, "anchor": {}}
    for word in (*known.names, *known.styles):
        anchor = {"override /anchor@_global_.anchor": known.anchor(word)}
        kind = "style" if word in known.styles else "instance"
        nodes["concept"][word] = {
            "defaults": ["custom", "_self_", anchor], "name": word, "kind": kind,
        }  # fmt: skip
        nodes["anchor"][word] = {"defaults": ["custom", "_self_"], "name": word}
    for group, own in nodes.items():
        files = {*group_choices(group)}
        for word, node in own.items():
            if word not in files:
                store.store(word, node, group=group, provider="vocabulary")
            elif group in store.repo:
                store.repo[group].pop(f"{word}.yaml", None)


def anchor_overrides(word: str, forgotten: Sequence[str]) -> list[str]:
    """Return the override that gives a word an anchor which is not forgotten beside it, if needed.

    Args:
        word: the name of a concept.
        forgotten: the names of all concepts of the run.
    """
    known = load_vocabulary()
    if word not in (*known.names, *known.styles) or word in group_choices("concept"):
        return []
    return [f"anchor={known.anchor(word, forgotten)}"]
