"""Recipes: one file a method and a model; folders in order, the user's own before ours."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from unlearn.concepts.concept import KINDS
from unlearn.config import recipes
from unlearn.config.compose import compose
from unlearn.config.parse import parse_config
from unlearn.config.recipes import find_recipe, read_recipe, recipe_names
from unlearn.config.search_path import conf_dir, group_choices


def write(folder: Path, **files: str) -> Path:
    """Recipes in a folder of a conf/."""
    for name, text in files.items():
        path = folder / "recipe" / f"{name.replace('__', '/')}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A conf/ in the place of the package's."""
    folder = tmp_path / "shipped"
    monkeypatch.setattr(recipes, "conf_folders", lambda: [folder, tmp_path / "own"])
    return folder


def test_a_recipe_takes_from_another_what_it_does_not_say(shipped: Path) -> None:
    base = "instance: {steps: 10, lr: 1}\nstyle: {steps: 20}\n"
    child = "from: a/base\ninstance: {lr: 2}\nunsafe: {steps: 30}\n"
    write(shipped, a__base=base, b__child=child, b__grandchild="from: b/child\nstyle: {lr: 3}\n")
    assert read_recipe(["a"], "base") == {
        "instance": {"steps": 10, "lr": 1}, "style": {"steps": 20}, "unsafe": {},
    }  # fmt: skip
    assert read_recipe(["b"], "child") == {
        "instance": {"steps": 10, "lr": 2}, "style": {"steps": 20}, "unsafe": {"steps": 30},
    }  # fmt: skip
    assert read_recipe(["b"], "grandchild") == {
        "instance": {"steps": 10, "lr": 2}, "style": {"steps": 20, "lr": 3},
        "unsafe": {"steps": 30},
    }  # fmt: skip


def test_the_first_folder_counts_and_the_user_s_own_file_before_ours(
    shipped: Path, tmp_path: Path
) -> None:
    write(shipped, a__x="instance: {lr: 1}", b__x="instance: {lr: 2}", b__y="instance: {lr: 3}")
    assert read_recipe(["a", "b"], "x")["instance"] == {"lr": 1}
    assert read_recipe(["b", "a"], "x")["instance"] == {"lr": 2}
    assert read_recipe(["a", "b"], "y")["instance"] == {"lr": 3}
    assert recipe_names(["a"]) == ["x"]
    assert recipe_names(["a", "b"]) == ["x", "y"]
    own = write(tmp_path / "own", a__x="instance: {lr: 4}", a__z="style: {lr: 5}")
    assert find_recipe(["a", "b"], "x") == own / "recipe" / "a" / "x.yaml"
    assert read_recipe(["b", "a"], "x")["instance"] == {"lr": 2}  # of the first folder
    assert recipe_names(["a", "b"]) == ["x", "y", "z"]


def test_recipes_that_take_from_each_other_are_refused(shipped: Path) -> None:
    write(shipped, a__one="from: a/two\n", a__two="from: a/one\n")
    with pytest.raises(ValueError, match=r"^conf/recipe, one: its `from` leads back to itself$"):
        read_recipe(["a"], "one")


def test_a_recipe_that_changes_is_read_again(shipped: Path) -> None:
    write(shipped, a__one="style: {steps: 1}\n")
    assert read_recipe(["a"], "one")["style"] == {"steps": 1}
    path = find_recipe(["a"], "one")
    path.write_text("style: {steps: 2}\n")
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))  # whatever the clock's grain
    assert read_recipe(["a"], "one")["style"] == {"steps": 2}


def test_an_unknown_recipe_names_the_nearest(shipped: Path) -> None:
    write(shipped, a__doco="instance: {lr: 1}", a__child="from: a/nowhere")
    message = r"^method\.recipe='doko': .* conf/recipe of model\.recipes=\['a'\]; .*'doco'"
    with pytest.raises(ValueError, match=message):
        read_recipe(["a"], "doko")
    with pytest.raises(ValueError, match=r"^method\.recipe='nowhere': there is no such file"):
        read_recipe(["a"], "child")


def test_a_key_that_is_no_kind_of_concept_is_refused(shipped: Path) -> None:
    write(shipped, a__x="instanse: {lr: 1}")
    with pytest.raises(ValueError, match=r"conf/recipe, x: 'instanse' is none of \['from', 'inst"):
        read_recipe(["a"], "x")


def test_what_a_recipe_lacks_is_its_default_or_refused(shipped: Path) -> None:
    write(shipped, a__x="instance: {lr: 1}")
    config = OmegaConf.create(
        {
            "model": {"recipes": ["a"]}, "method": {"recipe": "x"}, "concept": {"kind": "instance"},
            "lr": "${recipe:lr}", "size": "${recipe:size,8}", "steps": "${recipe:steps}",
        }
    )  # fmt: skip
    assert (config.lr, config.size) == (1, 8)
    with pytest.raises(ValueError, match=r"method\.recipe='x': has no steps for concept\.kind='i"):
        recipes.recipe_value("steps", _root_=config)
    config.method.recipe = "y"
    assert config.size == 8
    with pytest.raises(ValueError, match=r"method\.recipe='y': there is no such file"):
        recipes.recipe_value("lr", _root_=config)


def test_a_missing_key_is_refused_in_one_line_unless_the_command_line_gives_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "conf", emoji__esd="instance: {steps: 9, num_inference_steps: 5}")
    monkeypatch.chdir(tmp_path)
    overrides = ["concept=panda", "method=esd", "method.trained=x"]
    message = r"^method\.recipe='esd': has no lr for concept\.kind='instance' \(conf/recipe of "
    with pytest.raises(ValueError, match=message) as caught:
        parse_config(compose(overrides))
    assert "\n" not in str(caught.value)
    config = parse_config(compose([*overrides, "method.lr=1e-3"]))
    assert (config.steps, config.options.lr) == (9, 1e-3)


def test_one_s_own_recipe_is_found_beside_the_shipped_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = read_recipe(["emoji"], "doco")["instance"]
    write(tmp_path / "conf", emoji__mine="from: emoji/doco\ninstance: {steps: 777}\n")
    monkeypatch.chdir(tmp_path)
    config = parse_config(compose(["concept=panda", "method.recipe=mine"]))
    assert config.steps == 777
    assert config.options.lr == shipped["lr"]
    assert config.folder == Path("runs/panda-mine-0")


def test_every_recipe_that_ships_has_kinds_alone() -> None:
    names = group_choices("recipe")
    assert {name.partition("/")[0] for name in names} == {
        path.name for path in (conf_dir() / "recipe").iterdir()
    }
    for name in names:
        folder, _, own = name.partition("/")
        assert tuple(read_recipe([folder], own)) == KINDS
