"""Concepts: validation, disjoint prompt sets, and every shipped config."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from unlearn.concepts import (
    Concept,
    build_concept,
    evaluation_probes,
    relearn_prompts,
    training_pairs,
)
from unlearn.vocabulary import fill, vocabulary

CONF = Path(__file__).parents[2] / "conf" / "concept"
SHIPPED = sorted(CONF.rglob("*.yaml"))


def load(path: Path) -> Concept:
    return build_concept(yaml.safe_load(path.read_text()))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_no_unseen_prompt_occurs_in_training(path: Path) -> None:
    concept = load(path)
    trained = {prompt for pair in training_pairs(concept) for prompt in pair}
    trained |= set(relearn_prompts(concept))
    unseen = [p.prompt for p in evaluation_probes(concept) if p.set == "unseen_target"]
    assert unseen
    assert not trained & set(unseen)
    words = vocabulary()
    phrases = [s for t in concept.targets if t in words.objects for s in words.objects[t].synonyms]
    phrases += [t.replace("{}", "") for t in words.templates["unseen"]]
    for phrase in phrases:
        assert not any(phrase in prompt for prompt in trained)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_seen_prompts_are_the_trained_ones_and_all_sets_are_there(path: Path) -> None:
    concept = load(path)
    probes = evaluation_probes(concept)
    assert {p.set for p in probes} == {"seen_target", "unseen_target", "related", "unrelated"}
    assert concept.name == path.stem
    if concept.kind != "style":
        targets = {target for _, target in training_pairs(concept)}
        assert {p.prompt for p in probes if p.set == "seen_target"} == targets


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_relearning_sees_neighbours_but_no_target_and_no_unrelated_concept(path: Path) -> None:
    concept = load(path)
    prompts = relearn_prompts(concept)
    words = [re.sub(r"[^a-z ]", " ", p).split() for p in prompts]
    for name in (*concept.targets, *concept.unrelated):
        assert not any(set(name.split()) <= set(w) for w in words), name
    for name in concept.related:
        assert sum(name in p for p in prompts) >= 5


@pytest.mark.parametrize(
    ("noun", "text"), [("apple", "an apple"), ("unicorn", "a unicorn"), ("umbrella", "an umbrella")]
)
def test_articles(noun: str, text: str) -> None:
    assert fill("a picture of a {}", noun) == f"a picture of {text}"
    assert fill("a cute {}", noun) == f"a cute {noun}"


def test_style_pairs_use_the_method_s_phrases_one_to_two() -> None:
    concept = Concept("style", "noto", ["noto"], "", ["flat"], ["panda"])
    pairs = training_pairs(concept)
    assert all(not anchor.count("noto") and target.count("noto") == 1 for anchor, target in pairs)
    suffix = sum(target.endswith(", in the style of noto") for _, target in pairs)
    prefix = sum(target.startswith("in noto's style, ") for _, target in pairs)
    assert suffix + prefix == len(pairs)
    assert abs(2 * suffix - prefix) <= 2
    assert not any("panda" in anchor for anchor, _ in pairs)


def test_a_style_can_be_corrected_to_another_style() -> None:
    concept = Concept("style", "noto", ["noto"], "blob", ["flat"], ["panda"])
    for anchor, target in training_pairs(concept):
        assert anchor.replace("blob", "noto") == target != anchor
    related = {p.style for p in evaluation_probes(concept) if p.set == "related"}
    assert related == {"blob", "flat"}
    with pytest.raises(ValueError, match=r"concept\.anchor='bear' is unknown"):
        Concept("style", "noto", ["noto"], "bear")


def test_object_pairs_differ_in_one_word() -> None:
    for anchor, target in training_pairs(Concept("instance", "panda", ["panda"], "bear")):
        assert anchor.replace("bear", "panda") == target != anchor


def test_each_target_of_a_group_can_have_an_anchor_of_its_own() -> None:
    concept = Concept("unsafe", "drinks", ["beer", "wine"], ["coffee", "cocktail"], ["cake"])
    assert concept.anchors == {"beer": "coffee", "wine": "cocktail"}
    assert concept.neighbours == ["coffee", "cocktail", "cake"]
    pairs = training_pairs(concept)
    for anchor, target in pairs:
        drink = "coffee" if "beer" in target else "cocktail"
        assert anchor == target.replace("beer", drink).replace("wine", drink)
    assert len(set(pairs)) == len(pairs) == 2 * len(vocabulary().templates["seen"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"targets": ["pnda"]}, r"concept\.targets='pnda' is unknown.*'panda'"),
        ({"anchor": "baer"}, r"concept\.anchor='baer' is unknown.*'bear'"),
        ({"anchor": ["bear", "cat"]}, r"concept\.anchor=\['bear', 'cat'\]: .* one for each of"),
        ({"anchor": ["baer"]}, r"concept\.anchor='baer' is unknown"),
        ({"kind": "thing"}, r"concept\.kind='thing' is unknown"),
        ({"targets": []}, r"concept\.targets=\[\]"),
        ({"anchor": "panda"}, r"concept\.targets=\['panda'\]: also given as anchor"),
        ({"related": ["panda"]}, r"also given as anchor, related"),
        ({"unrelated": ["cheery"]}, r"concept\.unrelated='cheery' is unknown.*'cherry'"),
    ],
)
def test_bad_concepts_are_refused(fields: dict[str, object], message: str) -> None:
    good = {"kind": "instance", "name": "panda", "targets": ["panda"], "anchor": "bear"}
    Concept(**good)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        Concept(**{**good, **fields})  # type: ignore[arg-type]


def test_synonyms_are_unique_and_never_contain_the_name() -> None:
    phrases = [(n, s) for n, o in vocabulary().objects.items() for s in o.synonyms]
    assert len({s for _, s in phrases}) == len(phrases)
    assert all(name not in phrase for name, phrase in phrases)
    assert all(len(o.synonyms) >= 1 for o in vocabulary().objects.values())
