"""The prompts of a concept, or of several: to unlearn, to relearn, and the evaluation's four sets.

Where several are forgotten, no prompt of one names what another forgets.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from unlearn.concepts.concept import Concept
from unlearn.concepts.prompt_packs import mentions
from unlearn.concepts.vocabulary import fill_template, vocabulary

SETS = ("seen_target", "unseen_target", "related", "unrelated")  # of the evaluation
SEEN_PROBES = 24  # seen prompts that are evaluated, evenly spaced, where a pack holds more


def mentions_none(names: list[str]) -> Callable[[str], bool]:
    """Whether a prompt holds none of the names, as a function of the prompt."""
    any_of = re.compile("|".join(rf"(?<!\w){re.escape(n)}(?!\w)" for n in names), re.IGNORECASE)
    return lambda prompt: not (names and any_of.search(prompt))


def style_scenes(concept: Concept) -> list[str]:
    """Prompts without a style, for a style concept: of the pack, or of the model's objects."""
    if concept.pack or concept.words is None:
        return concept.pack
    seen = concept.words.templates["seen"]
    names = [n for n in concept.words.names if n not in concept.unrelated]
    return [fill_template(seen[i % len(seen)], name) for i, name in enumerate(names)]


def training_pairs(concept: Concept) -> list[tuple[str, str]]:
    """All (anchor prompt, target prompt) pairs that unlearning trains on.

    Objects: the anchor word replaced by the target word. Styles: the seen templates in turn, on
    the prompts of `style_scenes`. Of several concepts, those of each.

    Source: the data of DoCo (arXiv 2405.15304) and of its reference implementation.
    """
    if concept.parts:
        return [pair for part in concept.parts for pair in training_pairs(part)]
    allowed = mentions_none(concept.elsewhere)
    return [pair for pair in member_pairs(concept) if all(map(allowed, pair))]


def member_pairs(concept: Concept) -> list[tuple[str, str]]:
    """The pairs of one concept, whatever else is forgotten."""
    pairs = []
    if concept.kind == "style":
        for number, scene in enumerate(style_scenes(concept)):
            phrase = concept.seen[number % len(concept.seen)]
            for target, anchor in concept.anchors.items():
                styled = phrase.format(p=scene, t=anchor) if anchor else scene
                pairs.append((styled, phrase.format(p=scene, t=target)))
        return pairs
    for target, anchor in concept.anchors.items():
        word = re.compile(rf"(?<!\w){re.escape(anchor)}(?!\w)", flags=re.IGNORECASE)
        pairs += [(p, word.sub(target.replace("\\", r"\\"), p)) for p in concept.pack]
        if not concept.pack:
            pairs += [(fill_template(s, anchor), fill_template(s, target)) for s in concept.seen]
    return pairs


def relearn_prompts(concept: Concept) -> list[str]:
    """Prompts of what must survive: neighbours and, in turn, the rest of the vocabulary.

    Holds no target and none of the `unrelated` concepts, which test what relearning never saw. Of
    several concepts, the prompts of each.
    """
    if concept.parts:
        return [prompt for part in concept.parts for prompt in relearn_prompts(part)]
    return list(filter(mentions_none(concept.elsewhere), member_relearn_prompts(concept)))


def pairs_in_context(concept: Concept, contexts: int) -> tuple[list[tuple[str, str]], list[str]]:
    """`training_pairs` and `relearn_prompts`, each beside another relearn prompt.

    `contexts` pairs with it after them, and the same with it before them: the training pairs in
    turn, or evenly spaced where they are more, and the relearn prompts evenly spaced.

    Returns:
        The pairs, and the relearn prompts, as many as there are; empty where `contexts` is 0.
    """
    if not contexts:
        return [], []
    pairs, others = training_pairs(concept), relearn_prompts(concept)
    found = []
    for i in range(contexts):
        number = i if contexts > len(pairs) else i * len(pairs) // contexts
        anchor, target = pairs[number % len(pairs)]
        other = others[i * len(others) // contexts]
        found.append((f"{anchor}, {other}", f"{target}, {other}"))
        found.append((f"{other}, {anchor}", f"{other}, {target}"))
    half = len(others) // 2
    beside = zip(others, others[half:] + others[:half], strict=True)
    return found, [f"{first}, {second}" for first, second in beside]


def member_relearn_prompts(concept: Concept) -> list[str]:
    """The relearn prompts of one concept, whatever else is forgotten."""
    words = vocabulary()
    plain_templates = words.templates["seen"]
    by_style = concept.kind == "style"
    phrases = list(dict.fromkeys(concept.seen)) if by_style else words.style_phrases["seen"]
    near = concept.neighbours
    plain = style_scenes(concept) if by_style else []
    if not by_style and concept.words:
        hidden = {*concept.unrelated, *concept.targets}
        others = [n for n in concept.words.names if n not in hidden]
        plain = [
            fill_template(plain_templates[i % len(plain_templates)], n)
            for i, n in enumerate(others)
        ]
    if not plain:
        return [fill_template(s, n) for s in concept.seen for n in near]
    styles = [s for s in concept.words.styles if s not in concept.targets] if concept.words else []
    prompts = []
    for i, scene in enumerate(plain):
        phrase = phrases[i % len(phrases)]
        if not by_style:
            prompts.append(fill_template(concept.seen[i % len(concept.seen)], near[i % len(near)]))
        elif near:
            prompts.append(phrase.format(p=scene, t=near[i % len(near)]))
        styled = bool(styles) and i % 2 == 0
        prompts.append(phrase.format(p=scene, t=styles[i % len(styles)]) if styled else scene)
    return prompts


def proportional_order(
    concept: Concept, prompts: Callable[[Concept], list[Any]], images: int
) -> list[int]:
    """The number of the prompt that each image is drawn from.

    One concept's prompts: in turn. Of several: an image for each concept in turn, each concept's
    evenly spaced over its prompts where it has more of them.

    Args:
        concept: one or several.
        prompts: gives those of a concept; of several, one concept's after another's.
        images: how many images there are.
    """
    sizes = [len(prompts(part)) for part in concept.members]
    if len(sizes) == 1:
        return [i % sizes[0] for i in range(images)]
    each, starts = math.ceil(images / len(sizes)), [0, *accumulate(sizes)]
    return [
        start + (i % size if size <= each else i * size // each)
        for i in range(each)
        for start, size in zip(starts, sizes, strict=False)
    ][:images]


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
    return [probe for part in concept.members for _, probe in numbered_probes(part)]


def numbered_probes(concept: Concept) -> list[tuple[int, Probe]]:
    """The prompts of one concept's sets, numbered as if nothing else were forgotten.

    So a prompt keeps its number, and with it its noise, whatever is forgotten beside the concept.
    Then prompts that name what else is forgotten fall away, and unrelated ones of what the others
    train on.
    """
    by_style = concept.kind == "style"
    probes = style_probes(concept) if by_style else object_probes(concept)
    allowed = mentions_none(concept.elsewhere)
    return [
        (number, p)
        for number, p in enumerate(probes)
        if allowed(p.prompt) and (p.set != "unrelated" or p.object in concept.safe_unrelated)
    ]


def check_prompts(concept: Concept) -> None:
    """Refuse concepts that have no prompts, or whose unseen ones are trained on.

    Raises:
        ValueError: names the concept, and what it lacks.
    """
    for part in concept.members:
        trained = {prompt for pair in training_pairs(part) for prompt in pair}
        probes = [p for _, p in numbered_probes(part)]
        left = {p.set for p in probes} | ({"training"} if trained else set())
        for name in ("training", *SETS[:2]):
            if name not in left:
                others = f": all name what {[o.name for o in part.others]} forget"
                raise ValueError(
                    f"concept={part.name}: has no {name.replace('_', ' ')} prompts"
                    f"{others if part.others else ''}"
                )
        if both := sorted({p.prompt for p in probes if p.set == "unseen_target"} & trained):
            raise ValueError(
                f"concept={part.name}: {both[0]!r} is to be unseen, and unlearning trains on it "
                "(concept.seen_templates, concept.unseen_templates, concept.synonyms)"
            )


def object_probes(concept: Concept) -> list[Probe]:
    """Unseen: templates, synonyms, backgrounds and styles that unlearning never saw."""
    words = vocabulary()
    seen, unseen = words.templates["seen"], concept.unseen
    phrases = words.style_phrases["unseen"]
    styles = concept.words.styles if concept.words else ()
    probes = []
    for t in concept.targets:
        trained = [p for _, p in member_pairs(concept) if mentions(t, p)]
        spaced = trained[:: math.ceil(len(trained) / SEEN_PROBES)]
        probes += [Probe("seen_target", p, t) for p in spaced]
        probes += [Probe("unseen_target", fill_template(s, t), t) for s in unseen]
        for i, synonym in enumerate(concept.synonyms[t]):
            probes += [Probe("unseen_target", fill_template(s, synonym), t) for s in unseen[i::4]]
        for i, colour in enumerate(words.backgrounds):
            text = f"{fill_template(unseen[i % len(unseen)], t)} on a {colour} background"
            probes.append(Probe("unseen_target", text, t))
        for i, style in enumerate(styles):
            text = phrases[i % len(phrases)].format(
                p=fill_template(seen[i % len(seen)], t), t=style
            )
            probes.append(Probe("unseen_target", text, t, style))
    for part, names in (("related", concept.neighbours), ("unrelated", concept.unrelated)):
        for i, name in enumerate(names):
            plain = (seen[i % 8], seen[(i + 4) % 8], unseen[i % len(unseen)])
            probes += [Probe(part, fill_template(s, name), name) for s in plain]
            if styles:
                style = styles[i % len(styles)]
                text = phrases[i % len(phrases)].format(p=fill_template("a {}", name), t=style)
                probes.append(Probe(part, text, name, style))
    return probes


def style_probes(concept: Concept) -> list[Probe]:
    """The target styles on objects that unlearning never saw, and those objects without them.

    A synonym is a phrase such as "the painter of Guernica", so it stands last.
    """
    words = vocabulary()
    last = words.style_phrases["seen"][0]
    unseen = words.templates["unseen"]
    seen_phrases = list(dict.fromkeys(concept.seen))
    probes = []
    for t in concept.targets:
        for part, phrases in (("seen", seen_phrases), ("unseen", concept.unseen)):
            plain = words.templates[part]
            for i, name in enumerate(concept.unrelated):
                text = fill_template(plain[i % len(plain)], name)
                probes += [
                    Probe(f"{part}_target", phrase.format(p=text, t=t), name, t)
                    for phrase in phrases
                ]
        for synonym in concept.synonyms[t]:
            for i, name in enumerate(concept.unrelated):
                text = last.format(p=fill_template(unseen[i % len(unseen)], name), t=synonym)
                probes.append(Probe("unseen_target", text, name, t))
    for style in concept.neighbours:
        for i, name in enumerate(concept.unrelated):
            phrase = seen_phrases[i % len(seen_phrases)]
            text = phrase.format(p=fill_template("a {}", name), t=style)
            probes.append(Probe("related", text, name, style))
    for i, name in enumerate(concept.unrelated):
        pair = (unseen[i % len(unseen)], unseen[(i + 4) % len(unseen)])
        probes += [Probe("unrelated", fill_template(s, name), name) for s in pair]
    return probes
