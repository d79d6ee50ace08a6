"""Find the configuration files of the package, of installed packages and of the user."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from unlearn.utils.files import check_yaml_size, read_text

if TYPE_CHECKING:
    from hydra.core.config_search_path import ConfigSearchPath

VOCABULARY_SCHEME = "vocabulary"  # of `VocabularySource` in Hydra's search path
GROUPS = ("unlearn.methods", "unlearn.conf")  # of the entry points of packages that bring files


def conf_dir() -> Path:
    """Return the package's conf/, which a checkout has beside the package and a wheel inside it."""
    inside = Path(__file__).parents[1] / "conf"
    return inside if inside.exists() else Path(__file__).parents[2] / "conf"


def user_conf_dir() -> Path | None:
    """Return the user's conf/ in the working folder, or None where there is none.

    The package's own conf/ is not the user's, even when a checkout is the working folder.
    """
    own = Path("conf").resolve()
    return own if own.is_dir() and own != conf_dir() else None


@cache
def installed_conf_dirs() -> tuple[Path, ...]:
    """Return the folders conf/ inside of installed packages that bring files of conf/.

    These are the packages of an entry point `unlearn.methods`, and those that an entry point
    `unlearn.conf` names. None of them is imported.
    """
    entries = [entry for group in GROUPS for entry in entry_points(group=group)]
    packages = {entry.module.partition(".")[0]: None for entry in entries}
    specs = [find_spec(name) for name in packages]
    places = [place for s in specs if s for place in s.submodule_search_locations or ()]
    return tuple(Path(place) / "conf" for place in places if (Path(place) / "conf").is_dir())


def check_user_files() -> None:
    """Refuse files of the user's conf/ that hold themselves, or stand for too many values.

    Hydra would read such a file for hours. What else is wrong with a file, Hydra says itself.

    Raises:
        ValueError: names the file.
    """
    own = user_conf_dir()
    for path in sorted(own.rglob("*.yaml")) if own else []:
        with contextlib.suppress(OSError, UnicodeDecodeError):
            check_user_file(path, path.stat().st_mtime_ns)


@cache
def check_user_file(path: Path, written: int) -> None:
    """Refuse one file of the user's conf/, see `check_user_files`.

    Args:
        path: the file.
        written: when it was written, so that a changed file is read again.
    """
    check_yaml_size(read_text(path), str(path))


def extend_search_path(search_path: ConfigSearchPath) -> None:
    """Extend Hydra's search path, in which the first folder that has a file counts.

    The user's own conf/ comes first, unless it has a root's name, as conf/train.yaml. The conf/
    of installed packages and the vocabulary's words come last.
    """
    own = user_conf_dir()
    if own and not any((own / root.name).exists() for root in conf_dir().glob("*.yaml")):
        search_path.prepend("unlearn-own", f"file://{own}")
    elif own:
        search_path.append("unlearn-own", f"file://{own}")
    for folder in installed_conf_dirs():
        search_path.append("unlearn-installed", f"file://{folder}")
    search_path.append("unlearn-vocabulary", f"{VOCABULARY_SCHEME}://")


def replaced_files(overrides: Sequence[str]) -> list[str]:
    """Return the user's own files that overrides choose in place of the package's."""
    own = user_conf_dir()
    chosen = [o.partition("=") for o in overrides] if own else []
    names = [f"{group}/{name}.yaml" for group, _, names in chosen for name in split_names(names)]
    return [
        f"conf/{name}"
        for name in names
        if own and (own / name).is_file() and (conf_dir() / name).is_file()
    ]


def split_names(value: str) -> list[str]:
    """Return the names of an override's value, such as "panda", "[panda,noto]" or "panda,noto"."""
    return [name.strip() for name in value.strip("[]").split(",")]


def conf_folders() -> list[Path]:
    """Return the folders of configuration files: the package's first, the user's own last."""
    own = user_conf_dir()
    return [conf_dir(), *installed_conf_dirs(), *([own] if own else [])]


def group_choices(group: str) -> list[str]:
    """Return the names of the files in a group of conf/, the user's files among them."""
    folders = [folder / group for folder in conf_folders()]
    return sorted(
        {
            p.relative_to(folder).with_suffix("").as_posix()
            for folder in folders
            for p in folder.rglob("*.yaml")
        }
    )
