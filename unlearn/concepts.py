"""Concepts and anchors: what is forgotten, what replaces it, and the prompts of both."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from typing import Any

from unlearn.vocabulary import vocabulary

KINDS = ("instance", "style", "unsafe")


@dataclass(frozen=True)
class Concept:
    """A concept to forget.

    Attributes:
        kind: "instance", "style" or "unsafe" (a group of objects).
        name: the name of the run's concept.
        targets: the words that unlearning trains on; one for an instance or a style.
        anchor: the word that each target is corrected to; for a style, empty.
        related: neighbours that must survive.
        unrelated: far concepts that must survive.
    """

    kind: str
    name: str
    targets: list[str]
    anchor: str
    related: list[str] = field(default_factory=list)
    unrelated: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        check("concept.kind", self.kind, list(KINDS))
        if not self.targets:
            raise ValueError("concept.targets=[]: at least one target is needed")
        words = vocabulary()
        known = list(words.styles) if self.kind == "style" else words.names
        for key in ("targets", "related"):
            for value in getattr(self, key):
                check(f"concept.{key}", value, known)
        for value in self.unrelated:
            check("concept.unrelated", value, words.names)
        if self.kind != "style":
            check("concept.anchor", self.anchor, words.names)
        kept = {self.anchor, *self.related, *self.unrelated}
        if kept & set(self.targets):
            both = sorted(kept & set(self.targets))
            raise ValueError(f"concept.targets={both}: also given as anchor, related or unrelated")


def check(key: str, value: str, known: list[str]) -> None:
    """Refuse an unknown name, naming the nearest valid ones.

    Raises:
        ValueError: `value` is not in `known`.
    """
    if value not in known:
        near = difflib.get_close_matches(value, known, n=3, cutoff=0.4) or known[:8]
        raise ValueError(f"{key}={value!r} is unknown; did you mean one of {near}?")


def build_concept(config: dict[str, Any]) -> Concept:
    """The concept described by a plain config section."""
    return Concept(**config)


def training_pairs(concept: Concept) -> list[tuple[str, str]]:
    """All (anchor prompt, target prompt) pairs that unlearning trains on.

    Objects: the anchor word replaced by the target word. Styles: 1/3 "{p}, in the style of {t}",
    2/3 "in {t}'s style, {p}" on objects outside the test sets (DoCo's reference data).
    """
    words = vocabulary()
    seen = words.templates["seen"]
    if concept.kind != "style":
        return [(s.format(concept.anchor), s.format(t)) for t in concept.targets for s in seen]
    suffix, prefix = words.style_phrases["seen"]
    held_out = set(concept.unrelated)
    pairs = []
    for number, name in enumerate(n for n in words.names if n not in held_out):
        prompt = seen[number % len(seen)].format(name)
        phrase = suffix if number % 3 == 0 else prefix
        pairs += [(prompt, phrase.format(p=prompt, t=t)) for t in concept.targets]
    return pairs


@dataclass(frozen=True)
class Probe:
    """One evaluation prompt: its set, and the object or style that the base should draw."""

    set: str
    prompt: str
    expected: str
    object: str


def evaluation_probes(concept: Concept) -> list[Probe]:
    """The prompts of the four sets: seen target, unseen target, related, unrelated."""
    words = vocabulary()
    seen, unseen = words.templates["seen"], words.templates["unseen"]
    probes = []
    if concept.kind == "style":
        for t in concept.targets:
            for part in ("seen", "unseen"):
                for number, name in enumerate(concept.unrelated):
                    prompt = words.templates[part][number % len(words.templates[part])].format(name)
                    for phrase in words.style_phrases[part]:
                        text = phrase.format(p=prompt, t=t)
                        probes.append(Probe(f"{part}_target", text, t, name))
        for style in concept.related:
            for name in concept.unrelated:
                text = words.style_phrases["seen"][0].format(p=f"a {name}", t=style)
                probes.append(Probe("related", text, style, name))
        probes += [
            Probe("unrelated", unseen[i % len(unseen)].format(name), name, name)
            for i, name in enumerate(concept.unrelated * 2)
        ]
        return probes
    for t in concept.targets:
        probes += [Probe("seen_target", s.format(t), t, t) for s in seen]
        probes += [Probe("unseen_target", s.format(t), t, t) for s in unseen]
        for i, synonym in enumerate(words.objects[t].synonyms):
            probes += [Probe("unseen_target", s.format(synonym), t, t) for s in unseen[i::4]]
        for i, colour in enumerate(words.backgrounds):
            text = f"{unseen[i].format(t)} on a {colour} background"
            probes.append(Probe("unseen_target", text, t, t))
    for name in [concept.anchor, *concept.related]:
        probes += [Probe("related", s.format(name), name, name) for s in (*seen[:2], *unseen[:2])]
    for i, name in enumerate(concept.unrelated):
        probes += [Probe("unrelated", s.format(name), name, name) for s in (seen[i % 8], unseen[0])]
    return probes
