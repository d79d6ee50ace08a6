"""Concepts and anchors: what is forgotten, what replaces it, and the prompts of both."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from typing import Any

from unlearn.vocabulary import fill, vocabulary

KINDS = ("instance", "style", "unsafe")


@dataclass(frozen=True)
class Concept:
    """A concept to forget.

    Attributes:
        kind: "instance", "style" or "unsafe" (a group of objects).
        name: the name of the run's concept.
        targets: the words that unlearning trains on; one for an instance or a style.
        anchor: the word that the targets are corrected to, or a list with one for each target; for
            a style another style, or empty for no style at all, which serves where plain prompts
            never show the target style.
        related: neighbours that must survive.
        unrelated: far concepts that must survive.
    """

    kind: str
    name: str
    targets: list[str]
    anchor: str | list[str]
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
        if not isinstance(self.anchor, str) and len(self.anchor) != len(self.targets):
            raise ValueError(
                f"concept.anchor={list(self.anchor)}: one anchor is needed, or one for each of "
                f"concept.targets={list(self.targets)}"
            )
        for value in self.anchors.values():
            if self.kind != "style" or value:
                check("concept.anchor", value, known)
        kept = {*self.neighbours, *self.unrelated}
        if kept & set(self.targets):
            both = sorted(kept & set(self.targets))
            raise ValueError(f"concept.targets={both}: also given as anchor, related or unrelated")

    @property
    def anchors(self) -> dict[str, str]:
        """The anchor of each target."""
        one = isinstance(self.anchor, str)
        anchors = [self.anchor] * len(self.targets) if one else self.anchor
        return dict(zip(self.targets, anchors, strict=True))  # type: ignore[arg-type]

    @property
    def neighbours(self) -> list[str]:
        """The anchors, if there are any, and the related concepts, each once."""
        return [n for n in dict.fromkeys((*self.anchors.values(), *self.related)) if n]


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
        return [(fill(s, a), fill(s, t)) for t, a in concept.anchors.items() for s in seen]
    suffix, prefix = words.style_phrases["seen"]
    held_out = set(concept.unrelated)
    pairs = []
    for number, name in enumerate(n for n in words.names if n not in held_out):
        prompt = fill(seen[number % len(seen)], name)
        phrase = suffix if number % 3 == 0 else prefix
        for target, anchor in concept.anchors.items():
            styled = phrase.format(p=prompt, t=anchor) if anchor else prompt
            pairs.append((styled, phrase.format(p=prompt, t=target)))
    return pairs


def relearn_prompts(concept: Concept) -> list[str]:
    """Prompts of what must survive, neighbours and the rest of the vocabulary in turn.

    Holds no target and none of the `unrelated` concepts, which test what relearning never saw.
    """
    words = vocabulary()
    seen = words.templates["seen"]
    by_style = concept.kind == "style"
    hidden = {*concept.unrelated, *concept.targets}
    others = [n for n in words.names if n not in hidden]
    styles = [s for s in words.styles if s not in concept.targets]
    prompts = []
    for i, name in enumerate(others):
        near = concept.neighbours
        phrase = words.style_phrases["seen"][i % 2]
        plain = fill(seen[i % len(seen)], name)
        if by_style:
            close = phrase.format(p=plain, t=near[i % len(near)])
        else:
            close = fill(seen[i % len(seen)], near[i % len(near)])
        styled = phrase.format(p=plain, t=styles[i % len(styles)])
        prompts += [close, plain if i % 2 else styled]
    return prompts


@dataclass(frozen=True)
class Probe:
    """One evaluation prompt: its set, and the object and the style (if any) that it asks for."""

    set: str
    prompt: str
    object: str
    style: str | None = None


def evaluation_probes(concept: Concept) -> list[Probe]:
    """The prompts of the four sets: seen target, unseen target, related, unrelated."""
    return style_probes(concept) if concept.kind == "style" else object_probes(concept)


def object_probes(concept: Concept) -> list[Probe]:
    """Unseen: templates, synonyms, backgrounds and styles that unlearning never saw."""
    words = vocabulary()
    seen, unseen = words.templates["seen"], words.templates["unseen"]
    phrases = words.style_phrases["unseen"]
    probes = []
    for t in concept.targets:
        probes += [Probe("seen_target", fill(s, t), t) for s in seen]
        probes += [Probe("unseen_target", fill(s, t), t) for s in unseen]
        for i, synonym in enumerate(words.objects[t].synonyms):
            probes += [Probe("unseen_target", fill(s, synonym), t) for s in unseen[i::4]]
        for i, colour in enumerate(words.backgrounds):
            text = f"{fill(unseen[i], t)} on a {colour} background"
            probes.append(Probe("unseen_target", text, t))
        for i, style in enumerate(words.styles):
            text = phrases[i % len(phrases)].format(p=fill(seen[i], t), t=style)
            probes.append(Probe("unseen_target", text, t, style))
    for part, names in (
        ("related", concept.neighbours),
        ("unrelated", concept.unrelated),
    ):
        for i, name in enumerate(names):
            style = words.styles[i % len(words.styles)]
            styled = phrases[i % len(phrases)].format(p=fill("a {}", name), t=style)
            plain = (seen[i % 8], seen[(i + 4) % 8], unseen[i % 8])
            probes += [Probe(part, fill(s, name), name) for s in plain]
            probes.append(Probe(part, styled, name, style))
    return probes


def style_probes(concept: Concept) -> list[Probe]:
    """The target styles on objects that unlearning never saw, and those objects without them."""
    words = vocabulary()
    unseen = words.templates["unseen"]
    probes = []
    for t in concept.targets:
        for part in ("seen", "unseen"):
            templates = words.templates[part]
            for i, name in enumerate(concept.unrelated):
                text = fill(templates[i % len(templates)], name)
                probes += [
                    Probe(f"{part}_target", phrase.format(p=text, t=t), name, t)
                    for phrase in words.style_phrases[part]
                ]
    for style in concept.neighbours:
        for i, name in enumerate(concept.unrelated):
            phrase = words.style_phrases["seen"][i % 2]
            text = phrase.format(p=fill("a {}", name), t=style)
            probes.append(Probe("related", text, name, style))
    for i, name in enumerate(concept.unrelated):
        plain = (unseen[i % len(unseen)], unseen[(i + 4) % len(unseen)])
        probes += [Probe("unrelated", fill(s, name), name) for s in plain]
    return probes
