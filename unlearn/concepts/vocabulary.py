"""Read what the embedded model knows: objects, synonyms, styles, backgrounds and templates."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from unlearn.utils.paths import EMBEDDED


@dataclass(frozen=True)
class VocabularyObject:
    """One drawable object: its family, its icon in the art sets, and phrases without its name."""

    family: str
    icon: str
    synonyms: tuple[str, ...]


@dataclass(frozen=True)
class Vocabulary:
    """All that the embedded model knows, in the order of the judges' classes."""

    objects: dict[str, VocabularyObject]
    styles: tuple[str, ...]
    backgrounds: dict[str, tuple[int, int, int]]
    templates: dict[str, tuple[str, ...]]
    style_phrases: dict[str, tuple[str, ...]]
    background_phrases: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        """The object names; the index of a name is the judges' object class."""
        return list(self.objects)

    def family(self, name: str) -> list[str]:
        """Return a name's neighbours: the other objects of its family, or the other styles."""
        if name in self.styles:
            return [s for s in self.styles if s != name]
        own = self.objects[name].family
        return [n for n, o in self.objects.items() if o.family == own and n != name]

    def anchor(self, name: str, forgotten: Sequence[str] = ()) -> str:
        """Return the anchor of a name that chooses none: the first other of its family.

        Names that are forgotten too are passed over, unless the whole family is.
        """
        family = self.family(name)
        return next((other for other in family if other not in forgotten), family[0])

    def unknown_words(self, text: str) -> list[str]:
        """Return the words of a text that no prompt of this vocabulary can hold, each once."""
        phrases = [
            *self.objects, *self.styles, *self.backgrounds, *self.background_phrases,
            *(synonym for known in self.objects.values() for synonym in known.synonyms),
            *(
                re.sub(r"\{\w*\}", "", template)
                for group in (self.templates, self.style_phrases)
                for templates in group.values()
                for template in templates
            ),
        ]  # fmt: skip
        known = {"an", *(word for phrase in phrases for word in split_words(phrase))}
        return [word for word in dict.fromkeys(split_words(text)) if word not in known]


def split_words(text: str) -> list[str]:
    """Return the words of a text in lower case, without what stands between them."""
    return re.findall(r"[^\W_]+", text.lower())


@cache
def load_vocabulary(path: Path = EMBEDDED / "vocabulary.yaml") -> Vocabulary:
    """Return the vocabulary stored at `path` (by default, the embedded model's)."""
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    return Vocabulary(
        objects={
            name: VocabularyObject(entry["family"], entry["icon"], tuple(entry["synonyms"]))
            for name, entry in raw["objects"].items()
        },
        styles=tuple(raw["styles"]),
        backgrounds={name: tuple(rgb) for name, rgb in raw["backgrounds"].items()},
        templates={k: tuple(v) for k, v in raw["templates"].items()},
        style_phrases={k: tuple(v) for k, v in raw["style_phrases"].items()},
        background_phrases=tuple(raw["background_phrases"]),
    )


def fill_template(template: str, noun: str) -> str:
    """Return `template` with `noun` in place of its `{}`, and "an" for the "a" before a vowel."""
    if re.match(r"[aeio]|u(?!ni)", noun, re.IGNORECASE):
        template = re.sub(r"\ba \{\}", "an {}", template)
    return template.format(noun)
