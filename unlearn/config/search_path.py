"""Find the configuration files: the package's, and the user's own."""

from __future__ import annotations

from pathlib import Path


def conf_dir() -> Path:
    """Return the package's conf/: beside the package in a checkout, inside it in a wheel."""
    inside = Path(__file__).parents[1] / "conf"
    return inside if inside.exists() else Path(__file__).parents[2] / "conf"


def user_conf_dir() -> Path | None:
    """Return conf/ of the working folder, or None where there is none of the user's own."""
    own = Path("conf").resolve()
    return own if own.is_dir() and own != conf_dir() else None


def conf_folders() -> list[Path]:
    """Return the folders of configuration files: the package's, then the user's own."""
    return [folder for folder in (conf_dir(), user_conf_dir()) if folder]


def group_choices(group: str) -> list[str]:
    """Return the names that a group of conf/ takes, the user's own among them."""
    folders = [folder / group for folder in conf_folders()]
    return sorted(
        {
            p.relative_to(folder).with_suffix("").as_posix()
            for folder in folders
            for p in folder.rglob("*.yaml")
        }
    )
