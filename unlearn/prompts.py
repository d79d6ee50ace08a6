"""The prompts of a concept: to unlearn, to relearn, and the four sets of the evaluation."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from unlearn.concepts import Concept, mentions
from unlearn.vocabulary import fill, vocabulary

SETS = ("seen_target", "unseen_target", "related", "unrelated")  # of the evaluation
SEEN_PROBES = 24  # seen prompts that are evaluated, evenly spaced, where a pack holds more


def scenes(concept: Concept) -> list[str]:
    """Prompts without a style, for a style concept: of the pack, or of the model's objects."""
    if concept.pack or concept.words is None:
        return concept.pack
    seen = concept.words.templates["seen"]
    names = [n for n in concept.words.names if n not in concept.unrelated]
    return [fill(seen[i % len(seen)], name) for i, name in enumerate(names)]


def training_pairs(concept: Concept) -> list[tuple[str, str]]:
    """All (anchor prompt, target prompt) pairs that unlearning trains on.

    Objects: the anchor word replaced by the target word. Styles: the seen templates in turn, on
    the prompts of `scenes`.

    Source: the data of DoCo (arXiv 2405.15304) and of its reference implementation.
    """
    pairs = []
    if concept.kind == "style":
        for number, scene in enumerate(scenes(concept)):
            phrase = concept.seen[number % len(concept.seen)]
            for target, anchor in concept.anchors.items():
                styled = phrase.format(p=scene, t=anchor) if anchor else scene
                pairs.append((styled, phrase.format(p=scene, t=target)))
        return pairs
    for target, anchor in concept.anchors.items():
        word = re.compile(rf"(?<!\w){re.escape(anchor)}(?!\w)", flags=re.IGNORECASE)
        pairs += [(prompt, word.sub(target, prompt)) for prompt in concept.pack]
        if not concept.pack:
            pairs += [(fill(s, anchor), fill(s, target)) for s in concept.seen]
    return pairs


def relearn_prompts(concept: Concept) -> list[str]:
    """Prompts of what must survive: neighbours and, in turn, the rest of the vocabulary.

    Holds no target and none of the `unrelated` concepts, which test what relearning never saw.
    """
    words = vocabulary()
    plain_templates = words.templates["seen"]
    by_style = concept.kind == "style"
    phrases = list(dict.fromkeys(concept.seen)) if by_style else words.style_phrases["seen"]
    near = concept.neighbours
    plain = scenes(concept) if by_style else []
    if not by_style and concept.words:
        hidden = {*concept.unrelated, *concept.targets}
        others = [n for n in concept.words.names if n not in hidden]
        plain = [fill(plain_templates[i % len(plain_templates)], n) for i, n in enumerate(others)]
    if not plain:
        return [fill(s, n) for s in concept.seen for n in near]
    styles = [s for s in concept.words.styles if s not in concept.targets] if concept.words else []
    prompts = []
    for i, scene in enumerate(plain):
        phrase = phrases[i % len(phrases)]
        if not by_style:
            prompts.append(fill(concept.seen[i % len(concept.seen)], near[i % len(near)]))
        elif near:
            prompts.append(phrase.format(p=scene, t=near[i % len(near)]))
        styled = bool(styles) and i % 2 == 0
        prompts.append(phrase.format(p=scene, t=styles[i % len(styles)]) if styled else scene)
    return prompts


def all_prompts(concept: Concept) -> set[str]:
    """Every prompt that a run uses."""
    pairs = {prompt for pair in training_pairs(concept) for prompt in pair}
    return pairs | {*relearn_prompts(concept)} | {p.prompt for p in evaluation_probes(concept)}


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
    seen, unseen = words.templates["seen"], concept.unseen
    phrases = words.style_phrases["unseen"]
    styles = concept.words.styles if concept.words else ()
    backgrounds = concept.words.backgrounds if concept.words else ()
    probes = []
    for t in concept.targets:
        trained = [p for _, p in training_pairs(concept) if mentions(t, p)]
        spaced = trained[:: math.ceil(len(trained) / SEEN_PROBES)]
        probes += [Probe("seen_target", p, t) for p in spaced]
        probes += [Probe("unseen_target", fill(s, t), t) for s in unseen]
        for i, synonym in enumerate(concept.synonyms[t]):
            probes += [Probe("unseen_target", fill(s, synonym), t) for s in unseen[i::4]]
        for i, colour in enumerate(backgrounds):
            text = f"{fill(unseen[i % len(unseen)], t)} on a {colour} background"
            probes.append(Probe("unseen_target", text, t))
        for i, style in enumerate(styles):
            text = phrases[i % len(phrases)].format(p=fill(seen[i % len(seen)], t), t=style)
            probes.append(Probe("unseen_target", text, t, style))
    for part, names in (("related", concept.neighbours), ("unrelated", concept.unrelated)):
        for i, name in enumerate(names):
            plain = (seen[i % 8], seen[(i + 4) % 8], unseen[i % len(unseen)])
            probes += [Probe(part, fill(s, name), name) for s in plain]
            if styles:
                style = styles[i % len(styles)]
                text = phrases[i % len(phrases)].format(p=fill("a {}", name), t=style)
                probes.append(Probe(part, text, name, style))
    return probes


def style_probes(concept: Concept) -> list[Probe]:
    """The target styles on objects that unlearning never saw, and those objects without them."""
    words = vocabulary()
    unseen = words.templates["unseen"]
    seen_phrases = list(dict.fromkeys(concept.seen))
    probes = []
    for t in concept.targets:
        for part, phrases in (("seen", seen_phrases), ("unseen", concept.unseen)):
            plain = words.templates[part]
            for i, name in enumerate(concept.unrelated):
                text = fill(plain[i % len(plain)], name)
                probes += [
                    Probe(f"{part}_target", phrase.format(p=text, t=t), name, t)
                    for phrase in phrases
                ]
    for style in concept.neighbours:
        for i, name in enumerate(concept.unrelated):
            phrase = seen_phrases[i % len(seen_phrases)]
            text = phrase.format(p=fill("a {}", name), t=style)
            probes.append(Probe("related", text, name, style))
    for i, name in enumerate(concept.unrelated):
        pair = (unseen[i % len(unseen)], unseen[(i + 4) % len(unseen)])
        probes += [Probe("unrelated", fill(s, name), name) for s in pair]
    return probes
