"""Sort the files of conf/concept by model and kind, without composing any: for help and lists."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from unlearn.config.search_path import (
    conf_dir,
    group_choices,
    installed_conf_dirs,
    user_conf_dir,
)
from unlearn.utils.files import parse_yaml, read_text

EMBEDDED, UNREADABLE = "embedded model", "cannot be read"


def concepts_by_kind() -> dict[str, list[str]]:
    """Return the names of concepts by model and kind, such as "embedded model, style"."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in group_choices("concept"):
        if name == "custom":
            continue
        try:
            kind = str(stated("concept", name, "kind"))
            # a concept of Stable Diffusion has an anchor with a prompt pack
            pack = stated("anchor", str(stated("concept", name, "anchor")), "prompts")
            group = f"{'Stable Diffusion' if pack else EMBEDDED}, {kind}"
        except (OSError, ValueError, RecursionError):
            group = UNREADABLE
        groups[group].append(name)
    return dict(sorted(groups.items()))


def embedded_concepts() -> list[str]:
    """Return the names of the embedded model's concepts."""
    groups = concepts_by_kind().items()
    return sorted(n for group, names in groups if group.startswith(EMBEDDED) for n in names)


def stated(group: str, name: str, key: str) -> Any:
    """Return what a file of conf/ says of a key, itself or by a file of its defaults.

    Args:
        group: the file's group.
        name: the file's name.
        key: a key; of a concept, "anchor" is the anchor that its defaults choose.

    Raises:
        OSError: the file cannot be read.
        ValueError: there is no such file, or it is no mapping.
    """
    own = user_conf_dir()
    folders = [*([own] if own else []), conf_dir(), *installed_conf_dirs()]  # in Hydra's order
    paths = [folder / group / f"{name}.yaml" for folder in folders]
    path = next((path for path in paths if path.is_file()), None)
    content = parse_yaml(read_text(path), str(path)) if path else None
    if not isinstance(content, dict):
        raise ValueError(f"conf/{group}/{name}.yaml: no such file, or no mapping")
    if content.get(key) is not None:
        return content[key]
    found = None
    for entry in content.get("defaults") or ():
        if isinstance(entry, dict):
            chosen = {str(k).partition("@")[0].rpartition("/")[2]: v for k, v in entry.items()}
            found = chosen.get(key, found)
        elif entry != "_self_":
            base = str(entry).partition("@")[0].removeprefix(f"/{group}/")
            inherited = stated(group, base, key)
            found = inherited if inherited is not None else found
    return found
