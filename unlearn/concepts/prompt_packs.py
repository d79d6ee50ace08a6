"""Read prompt packs: files with one prompt a line, each with the anchor word exactly once."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from unlearn.utils.files import read_text
from unlearn.utils.paths import PROMPT_PACKS


def read_pack(name: str | None, anchors: Mapping[str, str], needed: bool) -> list[str]:
    """Return the prompts of the anchor's pack; an empty list where the templates make the prompts.

    Args:
        name: the name of a shipped pack, or the path of a file; None is no pack.
        anchors: the anchor word of each target.
        needed: whether the templates cannot make the prompts.

    Raises:
        ValueError: there is no such pack, or a prompt holds the anchor word not exactly once, or
            names a target. Or the file holds no prompts, or is not text in UTF-8.
    """
    if name is None:
        if needed:
            raise ValueError("anchor.prompts=null: a style needs a prompt pack for this model")
        return []
    shipped = sorted(p.stem for p in PROMPT_PACKS.glob("*.txt"))
    path = PROMPT_PACKS / f"{name}.txt" if name in shipped else Path(name)
    if not path.is_file():
        raise ValueError(f"anchor.prompts={name!r}: no such file, nor one of {shipped}")
    try:
        lines = read_text(path).splitlines()
    except (OSError, ValueError) as error:
        raise ValueError(f"anchor.prompts={name!r}: not a text file in UTF-8: {error}") from error
    prompts = [line.strip() for line in lines if line.strip()]
    for word in sorted(set(anchors.values())):
        for prompt in prompts:
            if word and len(whole_word_matches(word, prompt)) != 1:
                raise ValueError(
                    f"anchor.prompts={name!r}: holds the anchor {word!r} not exactly "
                    f"once: {prompt!r}"
                )
    for target in anchors:
        for prompt in prompts:
            if whole_word_matches(target, prompt):
                raise ValueError(
                    f"anchor.prompts={name!r}: names the target {target!r} already: {prompt!r}"
                )
    if not prompts:
        raise ValueError(f"anchor.prompts={name!r}: holds no prompts")
    return prompts


def plural_pattern(word: str) -> str:
    """Return a regular expression of a word and its regular plural, as whole words."""
    ending = rf"{re.escape(word[:-1])}(?:y|ies)" if word[-1:] in "yY" else re.escape(word)
    return rf"(?<!\w){ending}(?:s|es)?(?!\w)"


def check_unnamed(key: str, target: str, phrase: str) -> None:
    """Refuse a phrase that names a target, in upper or lower case, or in the plural.

    Raises:
        ValueError: the phrase names the target; the message begins with `key`.
    """
    if whole_word_matches(target, phrase):
        raise ValueError(f"{key}={phrase!r}: contains its target {target!r}")
    if found := re.search(plural_pattern(target), phrase, flags=re.IGNORECASE):
        raise ValueError(f"{key}={phrase!r}: {found[0]!r} is the plural of its target {target!r}")


def whole_word_matches(word: str, prompt: str) -> list[str]:
    """Return the occurrences of `word` in `prompt` as a whole word, in upper or lower case."""
    return re.findall(rf"(?<!\w){re.escape(word)}(?!\w)", prompt, flags=re.IGNORECASE)
