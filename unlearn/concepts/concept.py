"""Check a concept and its anchor: what is forgotten, and what replaces it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from unlearn.concepts.prompt_packs import check_unnamed, read_pack
from unlearn.concepts.vocabulary import Vocabulary, load_vocabulary
from unlearn.utils.checks import check_choice
from unlearn.utils.options import option

KINDS = ("instance", "style", "unsafe")
NAME_PATTERN = re.compile(r"\w[\w .,'&()-]*")  # safe in a path, in Markdown and in HTML
# candidates for a concept's default `unrelated`
DEFAULT_UNRELATED = [
    "panda",
    "pizza",
    "bus",
    "guitar",
    "sunflower",
    "apple",
    "balloon",
    "castle",
    "rocket",
    "owl",
]


@dataclass(frozen=True, kw_only=True)
class ConceptConfig:
    """The section `concept` of a configuration: a file of conf/concept, or the command line."""

    name: str = option(help="the concept's name, which names the run")
    kind: str = option(
        "instance",
        help="the kind of concept; unsafe: explicit content, often a group",
        choices=KINDS,
    )
    targets: list[str] | None = option(
        None, help="the words that unlearning trains on; null: the name"
    )
    synonyms: dict[str, list[str]] | None = option(
        None,
        help="by target, phrases that unlearning never sees; null: those of the model's vocabulary",
    )
    seen_templates: list[str] | None = option(
        None,
        help="prompts to train on, with {} for the target (a style: {p} for a prompt, {t} for the "
        "target); null: those of the vocabulary",
    )
    unseen_templates: list[str] | None = option(
        None, help="prompts that only the evaluation uses; null: those of the vocabulary"
    )
    related: list[str] | None = option(
        None, help="neighbours that must survive; null: of the target's family in the vocabulary"
    )
    unrelated: list[str] | None = option(
        None, help="far concepts that must survive, in no training prompt; null: eight"
    )


@dataclass(frozen=True, kw_only=True)
class AnchorConfig:
    """The section `anchor` of a configuration: a file of conf/anchor, or the command line.

    For a style, `words=[""]` corrects the target style to no style at all. Use `words=[""]` where
    prompts without a style never show the target style.
    """

    name: str = option(help="the anchor's name")
    words: list[str] | None = option(
        None, help="the word that targets are corrected to, or one for each target; null: the name"
    )
    prompts: str | None = option(
        None,
        help="a prompt pack, one prompt a line, each with the anchor word once: a name of "
        "unlearn/assets/prompts or a path; null: the concept's templates",
    )


@dataclass(frozen=True)
class Concept:
    """A concept and its anchor, checked and with every default filled in.

    Several concepts that are forgotten at once are one `Concept` too (see `join_concepts`).

    Attributes:
        kind: "instance", "style" or "unsafe".
        name: the concept's name, which names the run.
        anchors: the anchor word of each target; for a style, "" is no style at all.
        synonyms: phrases for each target, by target.
        seen: the templates that unlearning trains on.
        unseen: the templates that only the evaluation uses.
        related: neighbours that must survive, the anchors not among them.
        unrelated: far concepts that must survive and that no training prompt names.
        pack: prompts with the anchor word; empty where the templates make the prompts.
        words: the model's vocabulary; None where it is not known, so that no name is checked.
        parts: the joined concepts; empty for a single concept.
        others: for one of several joined concepts, the rest of them.
    """

    kind: str
    name: str
    anchors: dict[str, str]
    synonyms: dict[str, list[str]]
    seen: list[str]
    unseen: list[str]
    related: list[str] = field(default_factory=list)
    unrelated: list[str] = field(default_factory=list)
    pack: list[str] = field(default_factory=list)
    words: Vocabulary | None = None
    parts: tuple[Concept, ...] = ()
    others: tuple[Concept, ...] = ()

    @property
    def members(self) -> tuple[Concept, ...]:
        """The joined concepts, or a single concept itself."""
        return self.parts or (self,)

    @property
    def names_forgotten_by_others(self) -> list[str]:
        """The targets and synonyms of the `others`, which no prompt of this concept may name."""
        return [n for o in self.others for t in o.targets for n in (t, *o.synonyms[t])]

    @property
    def safe_unrelated(self) -> list[str]:
        """The far concepts that no training prompt of the `others` names either."""
        return [n for n in self.unrelated if all(n in o.unrelated for o in self.others)]

    @property
    def targets(self) -> list[str]:
        """The words that unlearning trains on."""
        return list(self.anchors)

    @property
    def neighbours(self) -> list[str]:
        """The anchors, if there are any, and the related concepts, each once."""
        return [n for n in dict.fromkeys((*self.anchors.values(), *self.related)) if n]


def build_concept(
    concept: ConceptConfig, anchor: AnchorConfig, words: Vocabulary | None = None
) -> Concept:
    """Return the concept of the two config sections, checked and with the defaults filled in.

    Args:
        concept: the config section `concept`.
        anchor: the config section `anchor`.
        words: the model's vocabulary, against which names are checked; None allows any name.

    Raises:
        ValueError: a name, a template or a prompt pack is not valid; the message says which and
            why.
    """
    check_choice("concept.kind", concept.kind, list(KINDS))
    by_style = concept.kind == "style"
    for key, name in (("concept.name", concept.name), ("anchor.name", anchor.name)):
        if not NAME_PATTERN.fullmatch(name):
            raise ValueError(
                f"{key}={name!r}: a name begins with a letter or digit and holds, beside them and "
                "spaces, only _ . , ' & ( ) -"
            )
    targets = [concept.name] if concept.targets is None else concept.targets
    if not targets:
        raise ValueError("concept.targets=[]: at least one target is needed")
    for key in ("targets", "related", "unrelated"):
        check_no_duplicates(f"concept.{key}", getattr(concept, key) or [])
    anchors = pair_anchors(targets, anchor, by_style)
    if words:
        check_known(concept, anchor, anchors, words)
    related, unrelated = resolve_kept(concept, anchors, words)
    both = sorted({*targets} & {*anchors.values(), *related, *unrelated})
    if both:
        raise ValueError(f"concept.targets={both}: also given as anchor, related or unrelated")
    seen, unseen = resolve_templates(concept, by_style)
    return Concept(
        kind=concept.kind,
        name=concept.name,
        anchors=anchors,
        synonyms=resolve_synonyms(concept, targets, words),
        seen=seen,
        unseen=unseen,
        related=related,
        unrelated=unrelated,
        pack=read_pack(anchor.prompts, anchors, by_style and words is None),
        words=words,
    )


def check_known(
    concept: ConceptConfig, anchor: AnchorConfig, anchors: dict[str, str], words: Vocabulary
) -> None:
    """Refuse names that the model's vocabulary lacks.

    Args:
        concept: the config section `concept`.
        anchor: the config section `anchor`.
        anchors: the anchor word of each target.
        words: the vocabulary.

    Raises:
        ValueError: a name is unknown; the message names the key and the nearest known names.
    """
    known = list(words.styles) if concept.kind == "style" else words.names
    if anchor.prompts and not {*anchors} <= {*known}:  # prompts are of Stable Diffusion's concepts
        raise ValueError(
            f"concept={concept.name}: the embedded model does not know it; add model=sd14"
        )
    check_names("concept.targets" if concept.targets else "concept.name", anchors, known)
    check_names("anchor.words" if anchor.words else "anchor.name", anchors.values(), known)
    check_names("concept.related", concept.related or [], known)
    check_names("concept.unrelated", concept.unrelated or [], words.names)


def resolve_kept(
    concept: ConceptConfig, anchors: dict[str, str], words: Vocabulary | None
) -> tuple[list[str], list[str]]:
    """Return the related and the unrelated concepts; by default, the vocabulary's.

    The default for related concepts are four of the first target's family. Those for unrelated
    ones are of no family of a target or an anchor.
    """
    taken = {*anchors, *anchors.values()}
    related = concept.related
    if related is None:
        family = words.family(next(iter(anchors))) if words else []
        related = [n for n in family if n not in taken][:4]
    unrelated = concept.unrelated
    if unrelated is None:
        named = taken if words and concept.kind != "style" else ()
        near = {m for n in named if n and words for m in words.family(n)}
        unrelated = [n for n in DEFAULT_UNRELATED if n not in {*taken, *near, *related}][:8]
    return list(related), list(unrelated)


def pair_anchors(targets: list[str], anchor: AnchorConfig, by_style: bool) -> dict[str, str]:
    """Return the anchor word of each target, by target.

    Raises:
        ValueError: there is neither one anchor nor one for each target, or an anchor is empty.
    """
    words = [anchor.name] if anchor.words is None else anchor.words
    if len(words) not in (1, len(targets)):
        raise ValueError(
            f"anchor.words={list(words)}: one word is needed, or one for each of "
            f"concept.targets={list(targets)}"
        )
    if not by_style and not all(words):
        raise ValueError("anchor.words=['']: only a style can have no anchor word")
    return dict(zip(targets, words * len(targets) if len(words) == 1 else words, strict=True))


def check_no_duplicates(key: str, words: Sequence[str]) -> None:
    """Refuse a list of words with an empty word or with a word that stands twice.

    Raises:
        ValueError: the words are refused; the message names the key.
    """
    if not all(word.strip() for word in words) or len({*words}) < len(words):
        raise ValueError(f"{key}={list(words)}: an empty word, or one that stands twice")


def check_names(key: str, values: Any, known: Sequence[str]) -> None:
    """Refuse names that are not among the known ones; an empty name stands for no style.

    Raises:
        ValueError: a name is unknown; the message names the key and the nearest known names.
    """
    for value in values:
        if value:
            check_choice(key, value, known)


def resolve_templates(concept: ConceptConfig, by_style: bool) -> tuple[list[str], list[str]]:
    """Return the seen and the unseen templates.

    The default for a style is DoCo's: 1/3 "{p}, in the style of {t}", 2/3 "in {t}'s style, {p}".

    Raises:
        ValueError: there is no template, or a template is both seen and unseen. Or a template does
            not hold each placeholder once, as a word of its own: a target inside a longer word
            could not be found in the prompt.
    """
    words = load_vocabulary()
    # the prefix stands twice, which makes the method's 2/3
    suffix, prefix = words.style_phrases["seen"]
    seen = [suffix, prefix, prefix] if by_style else list(words.templates["seen"])
    unseen = list((words.style_phrases if by_style else words.templates)["unseen"])
    chosen = (
        seen if concept.seen_templates is None else concept.seen_templates,
        unseen if concept.unseen_templates is None else concept.unseen_templates,
    )
    slots = ("{p}", "{t}") if by_style else ("{}",)
    for key, given in zip(("seen_templates", "unseen_templates"), chosen, strict=True):
        if not given:
            raise ValueError(f"concept.{key}=[]: at least one template is needed")
        for template in given:
            rest = template
            for slot in slots:
                rest = rest.replace(slot, "", 1)
            if any(slot not in template for slot in slots) or {*"{}"} & {*rest}:
                raise ValueError(
                    f"concept.{key}={template!r}: holds not exactly one of each of {list(slots)}"
                )
            if any(re.search(rf"\w{s}|{s}\w", template) for s in map(re.escape, slots)):
                raise ValueError(
                    f"concept.{key}={template!r}: a letter, digit or _ stands beside one of "
                    f"{list(slots)}, which must be a word of its own"
                )
    if both := sorted({*chosen[0]} & {*chosen[1]}):
        raise ValueError(f"concept.unseen_templates={both}: also among concept.seen_templates")
    return chosen


def resolve_synonyms(
    concept: ConceptConfig, targets: list[str], words: Vocabulary | None
) -> dict[str, list[str]]:
    """Return the synonyms of each target; the vocabulary's where the concept gives none.

    Raises:
        ValueError: synonyms are given for a word that is no target, or a synonym names its target.
    """
    given = concept.synonyms
    if given is None:
        known = words.objects if words else {}
        return {t: list(known[t].synonyms) if t in known else [] for t in targets}
    for target, phrases in given.items():
        check_choice("concept.synonyms", target, targets)
        check_no_duplicates(f"concept.synonyms.{target}", phrases)
        for phrase in phrases:
            check_unnamed("concept.synonyms", target, phrase)
    return {t: list(given.get(t, [])) for t in targets}
