"""Run `unlearn list`."""

from __future__ import annotations

import textwrap
from collections import defaultdict
from collections.abc import Callable

from unlearn.concepts.vocabulary import load_vocabulary
from unlearn.config.compose import compose
from unlearn.config.concept_files import concepts_by_kind
from unlearn.config.schema import PROMPT_SETS
from unlearn.config.search_path import group_choices
from unlearn.methods.registry import METHODS
from unlearn.utils.checks import check_choice

WIDTH = 80


def run(arguments: list[str]) -> None:
    """Print the list that the arguments name, or all lists.

    The lists are of concepts, methods, models, protocols and words.

    Raises:
        ValueError: there is no such list.
    """
    if len(arguments) > 1:
        raise ValueError(f"usage: unlearn list [{'|'.join(LISTS)}]")
    if arguments:
        check_choice("unlearn list", arguments[0], list(LISTS))
    for name in arguments or LISTS:
        lines = LISTS[name]()
        print("\n".join(lines if arguments else [f"{name}:", *lines, ""]))


def concept_lines() -> list[str]:
    """Return the files of conf/concept, by model and kind."""
    return [wrap_names(group, names) for group, names in concepts_by_kind().items()]


def method_lines() -> list[str]:
    """Return the methods, with their titles and the papers of those that have one."""
    width = max(map(len, METHODS))
    return [
        f"{name:<{width}}  {method.title}{f' ({method.paper})' if method.paper else ''}"
        for name, method in METHODS.items()
    ]


def model_lines() -> list[str]:
    """Return the files of conf/model, and the base model that each names."""
    names = group_choices("model")
    width = max(map(len, names))
    return [f"{n:<{width}}  {compose([f'model={n}']).model.pretrained}" for n in names]


def protocol_lines() -> list[str]:
    """Return the files of conf/evaluation, and where each protocol was published."""
    names = group_choices("evaluation")
    width, lines = max(map(len, names)), []
    for name in names:
        source = "how a run ends: seen and unseen target, related, unrelated"
        if name != PROMPT_SETS:
            section = compose([f"evaluation={name}"], "evaluate").evaluation
            source = f"{section.source}{', a small variant' if section.get('lite') else ''}"
        lines.append(f"{name:<{width}}  {source}")
    return lines


def word_lines() -> list[str]:
    """Return what the embedded model knows: objects by family, styles and backgrounds."""
    known, families = load_vocabulary(), defaultdict(list)
    for name, entry in known.objects.items():
        families[entry.family].append(name)
    lines = [wrap_names(family, names) for family, names in families.items()]
    return [
        *lines,
        wrap_names("styles", list(known.styles)),
        wrap_names("backgrounds", list(known.backgrounds)),
    ]


def wrap_names(title: str, names: list[str]) -> str:
    """Return a titled list of names, in lines of `WIDTH`."""
    return textwrap.fill(f"{title}: {', '.join(names)}", WIDTH, subsequent_indent="  ")


LISTS: dict[str, Callable[[], list[str]]] = {
    "concepts": concept_lines,
    "methods": method_lines,
    "models": model_lines,
    "protocols": protocol_lines,
    "words": word_lines,
}
