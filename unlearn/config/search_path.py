"""Find the configuration files: the package's, and the user's own."""

from __future__ import annotations

from pathlib import Path


def conf_dir() -> Path:
    """The folder of the configs: beside the package in a checkout, inside it in a wheel."""
    inside = Path(__file__).parents[1] / "conf"
    return inside if inside.exists() else Path(__file__).parents[2] / "conf"


def user_conf_dir() -> Path | None:
    """The folder of the user's own configs, found beside the shipped ones; None: there is none."""
    own = Path("conf").resolve()
    return own if own.is_dir() and own != conf_dir() else None


def group_choices(group: str) -> list[str]:
    """The names that a group of conf/ takes, one's own among them."""
    folders = [folder / group for folder in (conf_dir(), user_conf_dir()) if folder]
    return sorted(
        {
            p.relative_to(folder).with_suffix("").as_posix()
            for folder in folders
            for p in folder.rglob("*.yaml")
        }
    )
