"""Make the prompts of concepts: to unlearn, to relearn, and for the evaluation's four sets.

Where several concepts are forgotten, no prompt of one names what another forgets.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from unlearn.concepts.concept import Concept
from unlearn.concepts.prompt_packs import whole_word_matches
from unlearn.concepts.vocabulary import fill_template, load_vocabulary

SET_NAMES = ("seen_target", "unseen_target", "related", "unrelated")  # of the evaluation
MOST_SEEN_PROMPTS = 24  # seen prompts that are evaluated, evenly spaced, where a pack holds more


def make_name_filter(names: list[str]) -> Callable[[str], bool]:
    """Return a function that tells whether a prompt holds none of the names as a whole word."""
    any_of = re.compile("|".join(rf"(?<!\w){re.escape(n)}(?!\w)" for n in names), re.IGNORECASE)
    return lambda prompt: not (names and any_of.search(prompt))


def style_scenes(concept: Concept) -> list[str]:
    """Return prompts without a style, to which a style concept's templates add one.

    The prompts are the pack's, or else name the model's objects, the `unrelated` ones left out.
    """
    if concept.pack or concept.words is None:
        return concept.pack
    seen = concept.words.templates["seen"]
    names = [n for n in concept.words.names if n not in concept.unrelated]
    return [fill_template(seen[i % len(seen)], name) for i, name in enumerate(names)]


def training_pairs(concept: Concept) -> list[tuple[str, str]]:
    """Return all (anchor prompt, target prompt) pairs that unlearning trains on.

    For an object, the target word replaces the anchor word. For a style, the seen templates are
    applied in turn to the prompts of `style_scenes`. Several concepts have the pairs of each.

    Source: the data of DoCo (arXiv 2405.15304) and of its reference implementation.
    """
    if concept.parts:
        return [pair for part in concept.parts for pair in training_pairs(part)]
    allowed = make_name_filter(concept.names_forgotten_by_others)
    return [pair for pair in single_concept_pairs(concept) if all(map(allowed, pair))]


def single_concept_pairs(concept: Concept) -> list[tuple[str, str]]:
    """Return the training pairs of one concept, as if nothing else were forgotten."""
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
        # a backslash in the target would read as a reference to a group
        pairs += [(p, word.sub(target.replace("\\", r"\\"), p)) for p in concept.pack]
        if not concept.pack:
            pairs += [(fill_template(s, anchor), fill_template(s, target)) for s in concept.seen]
    return pairs


def relearn_prompts(concept: Concept) -> list[str]:
    """Return prompts of what must survive: neighbours and, in turn, the rest of the vocabulary.

    The prompts hold no target. They hold none of the `unrelated` concepts, which test what
    relearning never saw. Several concepts have the prompts of each.
    """
    if concept.parts:
        return [prompt for part in concept.parts for prompt in relearn_prompts(part)]
    return list(
        filter(
            make_name_filter(concept.names_forgotten_by_others),
            single_concept_relearn_prompts(concept),
        )
    )


def pairs_beside_relearn_prompts(
    concept: Concept, contexts: int
) -> tuple[list[tuple[str, str]], list[str]]:
    """Return training pairs and relearn prompts, each beside another relearn prompt.

    There are `contexts` pairs with the relearn prompt after them, and the same pairs with the
    relearn prompt before them. The pairs are those of `training_pairs` in turn, or evenly spaced
    where there are more than `contexts`. The relearn prompts beside the pairs are evenly spaced.

    Args:
        concept: one concept, or several as one.
        contexts: half the number of pairs.

    Returns:
        The pairs, and as many relearn prompts as `relearn_prompts` has, each followed by another.
        Both are empty where `contexts` is 0.
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


def single_concept_relearn_prompts(concept: Concept) -> list[str]:
    """Return the relearn prompts of one concept, as if nothing else were forgotten."""
    words = load_vocabulary()
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


def assign_prompts_to_images(
    concept: Concept, prompts: Callable[[Concept], list[Any]], images: int
) -> list[int]:
    """Return the number of the prompt that each image is drawn from.

    The prompts of one concept are taken in turn. Several concepts get an image each in turn. A
    concept with more prompts than images has its images evenly spaced over its prompts.

    Args:
        concept: one concept, or several as one.
        prompts: gives a concept's prompts; for several, one concept's after another's.
        images: the number of images.
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
    """Return every prompt that a run uses."""
    pairs = {prompt for pair in training_pairs(concept) for prompt in pair}
    return pairs | {*relearn_prompts(concept)} | {p.prompt for p in evaluation_prompts(concept)}


@dataclass(frozen=True)
class EvaluationPrompt:
    """One evaluation prompt: its set, and the object and the style (if any) that it asks for."""

    set: str
    prompt: str
    object: str
    style: str | None = None


def evaluation_prompts(concept: Concept) -> list[EvaluationPrompt]:
    """Return the prompts of the four sets: seen target, unseen target, related, unrelated."""
    return [probe for part in concept.members for _, probe in numbered_evaluation_prompts(part)]


def numbered_evaluation_prompts(concept: Concept) -> list[tuple[int, EvaluationPrompt]]:
    """Return the evaluation prompts of one concept, numbered as if nothing else were forgotten.

    The number decides a prompt's noise, which is therefore the same whatever is forgotten beside
    the concept. Then two kinds of prompts are left out: those that name what the `others` forget,
    and unrelated ones whose object the `others` train on.
    """
    by_style = concept.kind == "style"
    probes = style_prompts(concept) if by_style else object_prompts(concept)
    allowed = make_name_filter(concept.names_forgotten_by_others)
    return [
        (number, p)
        for number, p in enumerate(probes)
        if allowed(p.prompt) and (p.set != "unrelated" or p.object in concept.safe_unrelated)
    ]


def check_prompts(concept: Concept) -> None:
    """Refuse a concept that has no prompts, or whose unseen prompts are trained on.

    Raises:
        ValueError: the concept is refused; the message names the concept and what it lacks.
    """
    for part in concept.members:
        trained = {prompt for pair in training_pairs(part) for prompt in pair}
        probes = [p for _, p in numbered_evaluation_prompts(part)]
        left = {p.set for p in probes} | ({"training"} if trained else set())
        for name in ("training", *SET_NAMES[:2]):
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


def object_prompts(concept: Concept) -> list[EvaluationPrompt]:
    """Return the evaluation prompts of an object concept.

    The unseen prompts use templates, synonyms, backgrounds and styles that unlearning never saw.
    """
    words = load_vocabulary()
    seen, unseen = words.templates["seen"], concept.unseen
    phrases = words.style_phrases["unseen"]
    styles = concept.words.styles if concept.words else ()
    probes = []
    for t in concept.targets:
        trained = [p for _, p in single_concept_pairs(concept) if whole_word_matches(t, p)]
        spaced = trained[:: math.ceil(len(trained) / MOST_SEEN_PROMPTS)]
        probes += [EvaluationPrompt("seen_target", p, t) for p in spaced]
        probes += [EvaluationPrompt("unseen_target", fill_template(s, t), t) for s in unseen]
        # each synonym takes every fourth template, from another start
        for i, synonym in enumerate(concept.synonyms[t]):
            probes += [
                EvaluationPrompt("unseen_target", fill_template(s, synonym), t)
                for s in unseen[i::4]
            ]
        for i, colour in enumerate(words.backgrounds):
            text = f"{fill_template(unseen[i % len(unseen)], t)} on a {colour} background"
            probes.append(EvaluationPrompt("unseen_target", text, t))
        for i, style in enumerate(styles):
            text = phrases[i % len(phrases)].format(
                p=fill_template(seen[i % len(seen)], t), t=style
            )
            probes.append(EvaluationPrompt("unseen_target", text, t, style))
    for part, names in (("related", concept.neighbours), ("unrelated", concept.unrelated)):
        for i, name in enumerate(names):
            plain = (seen[i % 8], seen[(i + 4) % 8], unseen[i % len(unseen)])
            probes += [EvaluationPrompt(part, fill_template(s, name), name) for s in plain]
            if styles:
                style = styles[i % len(styles)]
                text = phrases[i % len(phrases)].format(p=fill_template("a {}", name), t=style)
                probes.append(EvaluationPrompt(part, text, name, style))
    return probes


def style_prompts(concept: Concept) -> list[EvaluationPrompt]:
    """Return the evaluation prompts of a style concept.

    The prompts ask for the target styles on objects that unlearning never saw, for neighbouring
    styles on those objects, and for those objects without a style. A synonym is a phrase such as
    "the painter of Guernica", which reads well only at the end of a prompt.
    """
    words = load_vocabulary()
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
                    EvaluationPrompt(f"{part}_target", phrase.format(p=text, t=t), name, t)
                    for phrase in phrases
                ]
        for synonym in concept.synonyms[t]:
            for i, name in enumerate(concept.unrelated):
                text = last.format(p=fill_template(unseen[i % len(unseen)], name), t=synonym)
                probes.append(EvaluationPrompt("unseen_target", text, name, t))
    for style in concept.neighbours:
        for i, name in enumerate(concept.unrelated):
            phrase = seen_phrases[i % len(seen_phrases)]
            text = phrase.format(p=fill_template("a {}", name), t=style)
            probes.append(EvaluationPrompt("related", text, name, style))
    for i, name in enumerate(concept.unrelated):
        pair = (unseen[i % len(unseen)], unseen[(i + 4) % len(unseen)])
        probes += [EvaluationPrompt("unrelated", fill_template(s, name), name) for s in pair]
    return probes
