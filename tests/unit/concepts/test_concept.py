"""Concepts and anchors: their config sections are checked, and defaults filled in."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import make_concept
from unlearn.concepts.concept import AnchorConfig, ConceptConfig, build_concept
from unlearn.concepts.vocabulary import fill_template, load_vocabulary
from unlearn.config.compose import compose
from unlearn.config.parse import parse_config


@pytest.mark.parametrize(
    ("noun", "text"),
    [
        ("apple", "an apple"),
        ("Eevee", "an Eevee"),
        ("Mickey", "a Mickey"),
        ("unicorn", "a unicorn"),
        ("umbrella", "an umbrella"),
    ],
)
def test_articles(noun: str, text: str) -> None:
    assert fill_template("a picture of a {}", noun) == f"a picture of {text}"
    assert fill_template("a cute {}", noun) == f"a cute {noun}"


def test_each_target_of_a_group_can_have_an_anchor_of_its_own() -> None:
    group = {"targets": ["beer", "wine"], "related": ["cake"]}
    concept = make_concept("drinks", ["coffee", "cocktail"], "unsafe", **group)
    assert concept.anchors == {"beer": "coffee", "wine": "cocktail"}
    assert concept.neighbours == ["coffee", "cocktail", "cake"]
    assert make_concept("drinks", "coffee", "unsafe", **group).anchors["wine"] == "coffee"


def test_defaults_come_from_the_vocabulary() -> None:
    concept = make_concept("frog", "turtle")
    words = load_vocabulary()
    assert concept.targets == ["frog"]
    assert concept.synonyms == {"frog": list(words.objects["frog"].synonyms)}
    assert set(concept.related) <= set(words.family("frog"))
    assert len(concept.related) == 4
    assert len(concept.unrelated) == 8
    family = {*words.family("frog"), *words.family("turtle"), "frog", "turtle"}
    assert not family & set(concept.unrelated)
    style = make_concept("noto", "flat", "style")
    assert style.related == ["fluent", "contrast", "blob", "twemoji"]


def test_without_a_vocabulary_any_name_goes() -> None:
    concept = build_concept(ConceptConfig(name="otter"), AnchorConfig(name="dog"))
    assert concept.anchors == {"otter": "dog"}
    assert concept.synonyms == {"otter": []}
    assert concept.related == []
    assert len(concept.unrelated) == 8


def test_a_concept_from_the_command_line_needs_no_file() -> None:
    concept = parse_config(
        compose(["concept.name=fox", "anchor.name=dog", "concept.synonyms={fox: [sly hunter]}"])
    ).concept
    assert concept.anchors == {"fox": "dog"}
    assert concept.synonyms == {"fox": ["sly hunter"]}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], r"concept\.name is missing: choose a file of conf/concept"),
        (["concept.name=fox"], r"anchor\.name is missing"),
        (["concept=panda", "concept.targets=3"], r"concept\.targets=3: .* is not a ListConfig"),
        (["concept=panda", "concept.kind=[a]"], r"concept\.kind: .*\['a'\]"),
        (["concept=panda", "+concept.colour=red"], r"concept\.colour=.*: there is no such key"),
        (["concept=panda", "anchor.prompts={a: b}"], r"anchor\.prompts: .*\{'a': 'b'\}"),
        (["concept=panda", "model.vocabulary=coco"], r"model\.vocabulary='coco': allowed"),
        (["concept=snoopy"], r"concept=snoopy: the embedded model does not know it"),
    ],
)
def test_bad_configs_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_config(compose(overrides))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "pnda"}, r"concept\.name='pnda' is unknown.*'panda'"),
        ({"targets": ["pnda"]}, r"concept\.targets='pnda' is unknown.*'panda'"),
        ({"anchor": "baer"}, r"anchor\.words='baer' is unknown.*'bear'"),
        ({"anchor": ["bear", "cat"]}, r"anchor\.words=\['bear', 'cat'\]: .* one for each of"),
        ({"anchor": ""}, r"anchor\.words=\[''\]: only a style"),
        ({"kind": "thing"}, r"concept\.kind='thing' is unknown"),
        ({"targets": []}, r"concept\.targets=\[\]"),
        ({"anchor": "panda"}, r"concept\.targets=\['panda'\]: also given as anchor"),
        ({"related": ["panda"]}, r"also given as anchor, related"),
        ({"related": ["cheery"]}, r"concept\.related='cheery' is unknown.*'cherry'"),
        ({"unrelated": ["cheery"]}, r"concept\.unrelated='cheery' is unknown.*'cherry'"),
        ({"seen_templates": ["a {} and a {}"]}, r"concept\.seen_templates='a {} and a {}': holds"),
        ({"unseen_templates": ["a thing"]}, r"concept\.unseen_templates='a thing': holds not"),
        ({"seen_templates": ["two {}s in a field"]}, r"'two {}s in a field': a letter, digit or _"),
        (
            {"unseen_templates": ["my_{}"]},
            r"concept\.unseen_templates='my_{}': a letter, digit or _",
        ),
        ({"seen_templates": []}, r"concept\.seen_templates=\[\]: at least one template"),
        ({"unseen_templates": []}, r"concept\.unseen_templates=\[\]: at least one template"),
        ({"unseen_templates": ["a {}"]}, r"unseen_templates=\['a {}'\]: also among"),
        ({"synonyms": {"bear": ["x"]}}, r"concept\.synonyms='bear' is unknown"),
        ({"synonyms": {"panda": ["my panda"]}}, r"'my panda': contains its target 'panda'"),
    ],
)
def test_bad_concepts_are_refused(fields: dict[str, object], message: str) -> None:
    good = {"name": "panda", "anchor": "bear"}
    make_concept(**good)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        make_concept(**{**good, **fields})  # type: ignore[arg-type]


def test_a_style_is_anchored_to_a_style() -> None:
    with pytest.raises(ValueError, match=r"anchor\.words='bear' is unknown"):
        make_concept("noto", "bear", "style")
    with pytest.raises(ValueError, match=r"seen_templates='a {}': holds not"):
        make_concept("noto", "flat", "style", seen_templates=["a {}"])
    with pytest.raises(ValueError, match=r"'{p}, {t}ish': a letter, digit or _"):
        make_concept("noto", "flat", "style", seen_templates=["{p}, {t}ish"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a dog\na cat\n", "holds the anchor 'dog' not exactly once: 'a cat'"),
        ("a dog and a dog\n", "not exactly once: 'a dog and a dog'"),
        ("a hotdog\n", "not exactly once: 'a hotdog'"),
        ("\n", "holds no prompts"),
        (None, "no such file, nor one of"),
    ],
)
def test_bad_prompt_packs_are_refused(tmp_path: Path, text: str | None, message: str) -> None:
    pack = tmp_path / "pack.txt"
    if text is not None:
        pack.write_text(text)
    anchor = AnchorConfig(name="dog", prompts=str(pack))
    with pytest.raises(ValueError, match=message):
        build_concept(ConceptConfig(name="otter"), anchor)


def test_a_style_without_a_vocabulary_needs_a_prompt_pack() -> None:
    anchor = AnchorConfig(name="none", words=[""])
    with pytest.raises(ValueError, match=r"anchor\.prompts=null: a style needs a prompt pack"):
        build_concept(ConceptConfig(name="monet", kind="style"), anchor)


def test_synonyms_are_unique_and_never_contain_the_name() -> None:
    phrases = [(n, s) for n, o in load_vocabulary().objects.items() for s in o.synonyms]
    assert len({s for _, s in phrases}) == len(phrases)
    assert all(name not in phrase for name, phrase in phrases)
    assert all(len(o.synonyms) >= 1 for o in load_vocabulary().objects.values())
