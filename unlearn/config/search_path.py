"""Find the configuration files of the package and of the user."""

from __future__ import annotations

from pathlib import Path


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


def conf_folders() -> list[Path]:
    """Return the folders of configuration files: the package's, then the user's."""
    return [folder for folder in (conf_dir(), user_conf_dir()) if folder]


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
