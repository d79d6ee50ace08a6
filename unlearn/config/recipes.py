"""Read recipes: a method's settings by model and kind of concept, from conf/recipe."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from unlearn.concepts.concept import KINDS
from unlearn.config.search_path import conf_folders
from unlearn.utils.checks import suggest

REQUIRED = object()  # the default of a key that a recipe must have


def recipe_names(folders: Sequence[str]) -> list[str]:
    """Return the names of all recipes in some folders of conf/recipe."""
    paths = [p for conf in conf_folders() for f in folders for p in (conf / "recipe" / f).glob("*")]
    return sorted({path.stem for path in paths if path.suffix == ".yaml"})


def find_recipe(folders: Sequence[str], name: str) -> Path:
    """Return the file of a recipe, from the first folder that has one of this name.

    Within a folder, the user's own file comes before the package's.

    Raises:
        ValueError: no folder has such a file, or the folders are no list of names.
    """
    if isinstance(folders, str) or not isinstance(folders, Sequence):
        raise ValueError(f"model.recipes={folders}: a list of folders of conf/recipe is needed")
    for folder in map(str, folders):
        for conf in reversed(conf_folders()):
            if (path := conf / "recipe" / folder / f"{name}.yaml").is_file():
                return path
    raise ValueError(
        f"method.recipe={name!r}: there is no such file in conf/recipe of model.recipes="
        f"{list(folders)}; {suggest(name, recipe_names(folders))}"
    )


def read_recipe(
    folders: Sequence[str], name: str, readers: tuple[Path, ...] = ()
) -> dict[str, dict[str, Any]]:
    """Return a recipe's settings by kind of concept.

    A recipe with `from: FOLDER/NAME` takes from that recipe each setting that it lacks itself.

    Args:
        folders: of conf/recipe.
        name: of the recipe.
        readers: the files whose `from` leads here.

    Raises:
        ValueError: there is no such file, one of its keys is no kind of concept, or its `from`
            leads back to itself.
    """
    path = find_recipe(folders, name)
    if path in readers:
        raise ValueError(f"conf/recipe, {name}: its `from` leads back to itself")
    kinds = dict(load_recipe(path, path.stat().st_mtime_ns))
    earlier: dict[str, dict[str, Any]] = {}
    if source := kinds.pop("from", None):
        folder, _, other = str(source).partition("/")
        earlier = read_recipe([folder], other, (*readers, path))
    for kind in kinds:
        if kind not in KINDS:
            raise ValueError(f"conf/recipe, {name}: {kind!r} is none of {['from', *KINDS]}")
    return {kind: earlier.get(kind, {}) | (kinds.get(kind) or {}) for kind in KINDS}


@cache
def load_recipe(path: Path, written: int) -> dict[str, Any]:
    """Return what a recipe's file holds; each key of a configuration asks for it anew.

    Args:
        path: the file.
        written: the time of its last change, so that a changed file is read again.
    """
    return dict(OmegaConf.to_container(OmegaConf.load(path)))  # type: ignore[arg-type]


def recipe_value(key: str, default: Any = REQUIRED, *, _root_: DictConfig) -> Any:
    """Return the value of `${recipe:KEY}` or `${recipe:KEY,DEFAULT}` in a configuration.

    Raises:
        ValueError: no default is given, and the recipe does not exist or lacks the key.
    """
    folders, name, kind = _root_.model.recipes, _root_.method.recipe, _root_.concept.kind
    if default is not REQUIRED and name not in recipe_names(folders):
        return default
    settings = read_recipe(folders, name).get(kind, {})
    if key not in settings and default is REQUIRED:
        raise ValueError(
            f"method.recipe={name!r}: has no {key} for concept.kind={kind!r} (conf/recipe of "
            f"model.recipes={list(folders)}); give it on the command line"
        )
    return settings.get(key, default)


OmegaConf.register_new_resolver("recipe", recipe_value, replace=True)
