"""`unlearn config` and `unlearn list`: what they say of keys, methods and protocols."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from unlearn.cli import config, reference
from unlearn.cli import list as listing
from unlearn.methods.registry import METHODS

Printed = Callable[..., str]


@pytest.fixture
def printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Printed:
    """What `unlearn config` prints, in a folder without a conf/."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> str:
        config.run(list(arguments))
        return capsys.readouterr().out

    return call


def test_a_key_has_a_default_a_meaning_and_bounds(printed: Printed) -> None:
    assert printed("checkpoint_every") == (
        "checkpoint_every = 250\n  steps between checkpoints\n"
        "  int; at least 1, at most 100000000\n"
    )


def test_a_recipes_value_is_shown_for_the_chosen_method_and_model(printed: Printed) -> None:
    assert printed("method.lr").startswith("method.lr = ${recipe:lr}  (here 0.0001)\n")
    assert "(here 3e-05)" in printed("method.lr", "method=esd")
    assert "(here" not in printed("run_dir")  # it waits for a concept


def test_a_section_is_that_of_the_overrides(printed: Printed) -> None:
    said = printed("method", "method=esd")
    assert "method.eta = 1.0" in said and "discriminator" not in said
    assert "evaluation.nudity = spm" in printed("evaluation", "evaluation=i2p")


def test_an_unknown_key_is_refused_with_the_nearest(printed: Printed) -> None:
    with pytest.raises(ValueError, match=r"^lr: there is no such key; did you mean .*method\.lr"):
        printed("lr")
    with pytest.raises(ValueError, match="usage"):
        printed("steps", "seed")


def test_the_pages_table_has_the_defaults_of_conf() -> None:
    table = reference.options_markdown("doco")
    assert "| `method.surgery` | `update` |" in table  # the option's own is the paper's
    whole = reference.markdown()
    assert "as \\_target\\_" in whole  # not emphasis
    assert all(f"## `method={name}`" in whole for name in METHODS)


def test_concepts_are_listed_by_model_and_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "group_choices", lambda _: ["custom", "noto", "panda", "monet"])
    assert listing.concept_lines() == [
        "Stable Diffusion, style: monet", "embedded model, instance: panda",
        "embedded model, style: noto",
    ]  # fmt: skip


def test_lists_name_papers_and_small_variants() -> None:
    methods = listing.method_lines()
    assert "esd               ESD (arXiv 2303.07345)" in methods
    assert not any(line.endswith("()") for line in methods)
    lite = [line for line in listing.protocol_lines() if line.split()[0].endswith("_lite")]
    assert lite and all(line.endswith(", a small variant") for line in lite)
    with pytest.raises(ValueError, match=r"'methodes'.*methods"):
        listing.run(["methodes"])
