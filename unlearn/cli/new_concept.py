"""Run `unlearn new-concept`."""

from __future__ import annotations

import re
from pathlib import Path

from unlearn.config.search_path import conf_dir

NEW_CONCEPT = """# A concept of one's own: unlearn train concept={name}
defaults:
  - custom
  - _self_
  - override /anchor@_global_.anchor: custom   # or a file of conf/anchor; else anchor.name=...

name: "{name}"
kind: instance          # instance | style | unsafe (explicit content; may be a group of objects)

# What is null here has a default that the embedded model's vocabulary gives; for Stable Diffusion
# name at least some related concepts.
targets: null           # words to forget; null: the name
synonyms: null          # phrases that unlearning never sees: {{{name}: [a phrase, another]}}
seen_templates: null    # to train on: ["a photo of a {{}}"]; a style: ["{{p}} in {{t}}'s style"]
unseen_templates: null  # only for evaluation
related: null           # neighbours that must survive
unrelated: null         # far concepts that must survive, in no training prompt
"""


def run(arguments: list[str]) -> None:
    """Write a commented file of conf/concept, for the user to edit.

    Raises:
        ValueError: the name is not valid, or taken.
    """
    if len(arguments) != 1 or not re.fullmatch(r"[^\W_]\w*", arguments[0]):
        raise ValueError("usage: unlearn new-concept NAME (letters, digits and _)")
    if (conf_dir() / "concept" / f"{arguments[0]}.yaml").exists():
        raise ValueError(f"{arguments[0]}: a shipped concept has this name; choose another")
    path = Path("conf") / "concept" / f"{arguments[0]}.yaml"
    if path.exists():
        raise ValueError(f"{path}: exists already")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(NEW_CONCEPT.format(name=arguments[0]), encoding="utf-8")
    print(path)
