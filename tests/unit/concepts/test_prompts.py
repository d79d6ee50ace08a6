"""The prompts of every shipped concept: pairs, disjoint sets, and what relearning sees."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import make_concept
from unlearn.concepts.concept import AnchorConfig, Concept, ConceptConfig, build_concept
from unlearn.concepts.prompts import (
    MOST_SEEN_PROMPTS,
    evaluation_prompts,
    pairs_beside_relearn_prompts,
    relearn_prompts,
    training_pairs,
)
from unlearn.concepts.vocabulary import load_vocabulary
from unlearn.config.compose import compose
from unlearn.config.concept_files import embedded_concepts
from unlearn.config.parse import parse_config
from unlearn.config.search_path import group_choices

EMBEDDED = embedded_concepts()
STABLE_DIFFUSION = sorted({*group_choices("concept")} - {"custom", *EMBEDDED})


@cache
def load(name: str) -> Concept:
    model = "emoji" if name in EMBEDDED else "sd14"
    return parse_config(compose([f"concept={name}", f"model={model}"])).concept


def test_the_shipped_concepts_are_those_promised() -> None:
    kinds = [load(n).kind for n in EMBEDDED]
    assert kinds.count("instance") >= 12
    styles = {t for n in EMBEDDED if (c := load(n)).kind == "style" for t in c.targets}
    assert styles == set(load_vocabulary().styles)
    assert kinds.count("unsafe") >= 1
    characters = {"snoopy", "mickey", "spongebob", "pikachu", "grumpy_cat", "r2d2", "nemo"}
    artists = {"van_gogh", "monet", "picasso", "rembrandt"}
    assert {*STABLE_DIFFUSION} == characters | artists | {"parachute", "nudity"}


@pytest.mark.parametrize("name", EMBEDDED + STABLE_DIFFUSION)
def test_no_unseen_prompt_occurs_in_training(name: str) -> None:
    concept = load(name)
    trained = {prompt for pair in training_pairs(concept) for prompt in pair}
    trained |= set(relearn_prompts(concept))
    unseen = [p.prompt for p in evaluation_prompts(concept) if p.set == "unseen_target"]
    assert unseen
    assert not trained & set(unseen)
    phrases = [s for group in concept.synonyms.values() for s in group]
    assert phrases or (concept.kind == "style" and concept.words)
    assert all(any(phrase in prompt for prompt in unseen) for phrase in phrases)
    if concept.kind != "style":
        phrases += [t.replace("{}", "") for t in concept.unseen]
    for phrase in phrases:
        assert not any(phrase in prompt for prompt in trained)


@pytest.mark.parametrize("name", EMBEDDED + STABLE_DIFFUSION)
@pytest.mark.parametrize("contexts", [3, 300])
def test_in_context_each_pair_stands_before_and_after_one_relearn_prompt(
    name: str, contexts: int
) -> None:
    """Every prompt is two of those that methods train on, so none of it is unseen."""
    concept = load(name)
    trained, others = training_pairs(concept), {*relearn_prompts(concept)}
    pairs, kept = pairs_beside_relearn_prompts(concept, contexts)
    assert len(pairs) == 2 * contexts
    used = set()
    for after, before in zip(pairs[::2], pairs[1::2], strict=True):
        pair, other = next(
            (pair, rest)
            for pair in trained
            if after[0].startswith(f"{pair[0]}, ")
            and (rest := after[0][len(pair[0]) + 2 :]) in others
            and after[1] == f"{pair[1]}, {rest}"
        )
        assert before == (f"{other}, {pair[0]}", f"{other}, {pair[1]}")
        used.add(pair)
    assert len(used) == min(contexts, len({*trained}))
    for text, other in zip(kept, relearn_prompts(concept), strict=True):
        assert text.startswith(f"{other}, ")
        assert text[len(other) + 2 :] in others


def test_no_contexts_are_no_prompts() -> None:
    assert pairs_beside_relearn_prompts(load("panda"), 0) == ([], [])


@pytest.mark.parametrize("name", EMBEDDED + STABLE_DIFFUSION)
def test_seen_prompts_are_trained_ones_and_all_sets_are_there(name: str) -> None:
    concept = load(name)
    probes = evaluation_prompts(concept)
    assert {p.set for p in probes} == {"seen_target", "unseen_target", "related", "unrelated"}
    assert concept.name == Path(name).name
    seen = {p.prompt for p in probes if p.set == "seen_target"}
    if concept.kind != "style":
        assert seen <= {target for _, target in training_pairs(concept)}
        assert len(seen) >= 8


@pytest.mark.parametrize("name", EMBEDDED)
def test_relearning_sees_neighbours_but_no_target_and_no_unrelated_concept(name: str) -> None:
    concept = load(name)
    prompts = relearn_prompts(concept)
    words = [re.sub(r"[^a-z ]", " ", p).split() for p in prompts]
    for other in (*concept.targets, *concept.unrelated):
        assert not any(set(other.split()) <= set(w) for w in words), other
    for other in concept.related:
        assert sum(other in p for p in prompts) >= 5


def test_style_pairs_use_the_method_s_phrases_one_to_two() -> None:
    concept = make_concept("noto", "", "style", related=["flat"], unrelated=["panda"])
    pairs = training_pairs(concept)
    assert all(not anchor.count("noto") and target.count("noto") == 1 for anchor, target in pairs)
    suffix = sum(target.endswith(", in the style of noto") for _, target in pairs)
    prefix = sum(target.startswith("in noto's style, ") for _, target in pairs)
    assert suffix + prefix == len(pairs)
    assert abs(2 * suffix - prefix) <= 2
    assert not any("panda" in anchor for anchor, _ in pairs)


def test_a_style_can_be_corrected_to_another_style() -> None:
    concept = make_concept("noto", "blob", "style", related=["flat"], unrelated=["panda"])
    for anchor, target in training_pairs(concept):
        assert anchor.replace("blob", "noto") == target != anchor
    related = {p.style for p in evaluation_prompts(concept) if p.set == "related"}
    assert related == {"blob", "flat"}


def test_object_pairs_differ_in_one_word() -> None:
    for anchor, target in training_pairs(make_concept("panda", "bear")):
        assert anchor.replace("bear", "panda") == target != anchor


def test_pairs_of_a_group_swap_each_target_for_its_own_anchor() -> None:
    targets = ["beer", "wine"]
    concept = make_concept("drinks", ["coffee", "cocktail"], "unsafe", targets=targets)
    pairs = training_pairs(concept)
    for anchor, target in pairs:
        drink = "coffee" if "beer" in target else "cocktail"
        assert anchor == target.replace("beer", drink).replace("wine", drink)
    assert len(set(pairs)) == len(pairs) == 2 * len(load_vocabulary().templates["seen"])


def test_a_prompt_pack_gives_the_pairs(tmp_path: Path) -> None:
    pack = tmp_path / "pack.txt"
    pack.write_text("\n".join(f"Dog number {i}, asleep" for i in range(100)))
    anchor = AnchorConfig(name="dog", prompts=str(pack))
    concept = build_concept(ConceptConfig(name="otter"), anchor)
    pairs = training_pairs(concept)
    assert pairs[7] == ("Dog number 7, asleep", "otter number 7, asleep")
    assert len(pairs) == 100
    seen = [p for p in evaluation_prompts(concept) if p.set == "seen_target"]
    assert 1 < len(seen) <= MOST_SEEN_PROMPTS


def test_a_pack_of_paintings_gives_the_pairs_of_an_artist(tmp_path: Path) -> None:
    pack = tmp_path / "pack.txt"
    pack.write_text("a painting of a harbour\na painting of a dog\n")
    anchor = AnchorConfig(name="painting", words=[""], prompts=str(pack))
    concept = build_concept(ConceptConfig(name="monet", kind="style", related=["degas"]), anchor)
    assert training_pairs(concept) == [
        ("a painting of a harbour", "a painting of a harbour, in the style of monet"),
        ("a painting of a dog", "in monet's style, a painting of a dog"),
    ]
    assert relearn_prompts(concept) == [
        "a painting of a harbour, in the style of degas",
        "a painting of a harbour",
        "in degas's style, a painting of a dog",
        "a painting of a dog",
    ]
