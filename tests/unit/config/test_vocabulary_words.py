"""Any word of the embedded vocabulary is a concept, and one's own file comes first."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from unlearn.cli import train as command
from unlearn.concepts.vocabulary import load_vocabulary
from unlearn.config.compose import compose
from unlearn.config.parse import parse_config
from unlearn.config.search_path import replaced_files

ROWS = Path(__file__).parents[3] / "experiments" / "table2" / "rows.yaml"
FRESH = yaml.safe_load(ROWS.read_text(encoding="utf-8"))["fresh_targets"]
WORDS = load_vocabulary()


@pytest.mark.parametrize(("target", "anchor"), FRESH.items())
def test_a_fresh_targets_anchor_is_the_rules(target: str, anchor: str) -> None:
    assert WORDS.anchor(target) == anchor
    spelled = [f"concept.name={target}", "concept.kind=instance", f"anchor.name={anchor}"]
    configs = [OmegaConf.to_yaml(compose(own)) for own in ([f"concept={target}"], spelled)]
    assert configs[0] == configs[1]


def test_every_word_has_an_anchor_of_its_family() -> None:
    for word in (*WORDS.names, *WORDS.styles):
        assert WORDS.anchor(word) in WORDS.family(word)


def test_a_word_is_a_concept_alone_and_beside_others() -> None:
    concept = parse_config(compose(["concept=elephant"])).trained
    assert (concept.name, concept.anchors) == ("elephant", {"elephant": "panda"})
    both = parse_config(compose(["concept=[panda,elephant]"])).trained
    assert both.anchors == {"panda": "bear", "elephant": "bear"}
    assert compose(["concept=elephant", "anchor=whale"]).anchor.name == "whale"
    style = compose(["concept=blob"])
    assert (style.concept.kind, style.anchor.name) == ("style", "fluent")


@pytest.mark.parametrize("word", ["panda", "elephant"])
def test_ones_own_file_counts_before_the_shipped_one(
    word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "conf" / "concept" / f"{word}.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(
        "defaults:\n  - custom\n  - _self_\n  - override /anchor@_global_.anchor: cat\n"
        f"name: {word}\nrelated: [wolf]\n"
    )
    monkeypatch.chdir(tmp_path)
    config = compose([f"concept={word}"])
    assert (config.anchor.name, config.concept.related) == ("cat", ["wolf"])
    shown = [f"conf/concept/{word}.yaml"] if word == "panda" else []
    assert replaced_files([f"concept=[{word},noto]", "steps=5"]) == shown
    assert replaced_files([f"concept=noto,{word}"]) == shown


def test_a_root_of_ones_own_is_no_root_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "train.yaml").write_text("epochs: 3\n")
    monkeypatch.chdir(tmp_path)
    assert "epochs" not in compose(["concept=panda"])


def test_the_notice_says_whose_file_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "conf" / "concept").mkdir(parents=True)
    (tmp_path / "conf" / "concept" / "panda.yaml").write_text("name: panda\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command.hydra, "main", lambda **_: lambda job: lambda: None)
    command.run(["concept=panda"])
    assert capsys.readouterr().err == (
        "unlearn: conf/concept/panda.yaml of this folder is taken, not the shipped one\n"
    )
