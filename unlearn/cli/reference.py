"""Describe every key of the configuration, for `unlearn config` and for the documentation."""

from __future__ import annotations

import re
import types
from collections.abc import Iterator, Sequence
from dataclasses import Field, dataclass, fields
from typing import Any, Union, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from unlearn.concepts.concept import AnchorConfig, ConceptConfig
from unlearn.config.compose import compose
from unlearn.config.schema import (
    PROMPT_SETS,
    EvaluateOptions,
    EvaluationOptions,
    ModelOptions,
    PoolOptions,
    RunOptions,
    SweeperOptions,
    TrainerOptions,
)
from unlearn.config.search_path import group_choices
from unlearn.data.training_data import DataOptions
from unlearn.evaluation.protocol import Calibration, Protocol, ProtocolConcept
from unlearn.methods.registry import METHODS
from unlearn.utils.checks import in_words, suggest
from unlearn.utils.options import REQUIRED, allowed_values, default_of

SECTIONS: dict[str, tuple[str, type]] = {  # by key: the section's title, and its schema
    "": ("The run", RunOptions),
    "concept": ("What is forgotten", ConceptConfig),
    "anchor": ("What replaces it", AnchorConfig),
    "model": ("The base model", ModelOptions),
    "data": ("The images to train on", DataOptions),
    "trainer": ("Where the run runs", TrainerOptions),
    "evaluation": ("The four prompt sets", EvaluationOptions),
    "hydra.sweeper": ("A sweep, `unlearn train -m`", SweeperOptions),
    "hydra.launcher": ("Jobs of a sweep side by side, `hydra/launcher=pool`", PoolOptions),
}
PROTOCOL: dict[str, type] = {  # by key: the schemas of a published protocol
    "evaluation": Protocol,
    "evaluation.concepts.NAME": ProtocolConcept,
    "evaluation.calibration": Calibration,
}
PLUGINS = {  # sections whose entries are classes
    "logger": "loggers beside metrics.csv, by name, each with the path of its class as _target_",
    "callbacks": "callbacks of Lightning, by name, each with the path of its class as _target_",
}
NAMES = {  # the keys that the section of every method has
    "name": "the method",
    "recipe": "the file of conf/recipe with the method's settings, by model and kind of concept",
}


@dataclass(frozen=True)
class KeyInfo:
    """The description of one key.

    Attributes:
        key: the key, with dots between its parts.
        kind: the type of its values.
        default: the value in the composed configuration; an interpolation is not resolved.
        meaning: one line that explains the key.
        allowed: the allowed values, in words; "" where any value of the type is allowed.
        value: the default with its interpolation resolved; "" where there is none to resolve.
    """

    key: str
    kind: str
    default: str
    meaning: str
    allowed: str
    value: str = ""

    def __str__(self) -> str:
        here = f"  (here {self.value})" if self.value else ""
        lines = [f"{self.key} = {self.default}{here}", f"  {self.meaning}"]
        facts = [self.kind, self.allowed] if self.allowed else [self.kind]
        return "\n".join([*lines, f"  {'; '.join(facts)}"])


def describe_keys(overrides: Sequence[str] = ()) -> list[KeyInfo]:
    """Return a description of every key of the configuration that the overrides compose.

    Raises:
        ValueError: an override is not valid.
    """
    protocol = any(o.startswith("evaluation=") and o != f"evaluation={PROMPT_SETS}"
                   for o in overrides)  # fmt: skip
    config = compose(list(overrides), "evaluate" if protocol else "train")
    found: list[KeyInfo] = []
    if protocol:
        shared = {key: schema for key, (_, schema) in SECTIONS.items() if key in config}
        for section, schema in {"": EvaluateOptions, **shared, **PROTOCOL}.items():
            found += of_schema(section, schema, config)
        return found
    for section, (_, schema) in SECTIONS.items():
        found += of_schema(section, schema, config)
    found += [info for info in of_schema("", EvaluateOptions) if info.key not in config]
    for section, meaning in PLUGINS.items():
        value = OmegaConf.to_container(config[section])
        found.append(KeyInfo(section, "entries by name", format_value(value), meaning, ""))
    return [*found, *of_method(config)]


def of_schema(section: str, schema: type, config: DictConfig | None = None) -> Iterator[KeyInfo]:
    """Yield a description of each key of a section.

    Args:
        section: the section's key; "" is the top of the configuration.
        schema: the dataclass of the section.
        config: the composed configuration, which the defaults are taken from; None: the schema's.
    """
    hints = get_type_hints(schema)
    for each in fields(schema):
        key = f"{section}.{each.name}".lstrip(".")
        default = default_in(config, key, each)
        allowed = allowed_values(each)
        if choices := own_choices(key):
            allowed = ", ".join(choices)
        kind, meaning = type_name(hints[each.name]), each.metadata["help"]
        yield KeyInfo(key, kind, default, meaning, allowed, resolved_value(config, key, default))


def of_method(config: DictConfig) -> Iterator[KeyInfo]:
    """Yield a description of each key of the section `method`: the chosen method's options."""
    for name, meaning in NAMES.items():
        value = OmegaConf.to_container(config.method)[name]  # type: ignore[call-overload, index]
        yield KeyInfo(f"method.{name}", "str", format_value(value), meaning,
                      ", ".join(METHODS) if name == "name" else "")  # fmt: skip
    yield from of_schema("method", METHODS[config.method.name].Options, config)


def own_choices(key: str) -> list[str]:
    """Return a sentence with the choices of a key's group of conf/, or an empty list.

    Only a key that names the choice has them, such as `concept.name`.
    """
    section, _, name = key.partition(".")
    groups = {"model": "pretrained", "concept": "name", "anchor": "name"}
    if groups.get(section) != name:
        return []
    return [f"{section}=NAME chooses one of {', '.join(group_choices(section))}"]


def default_in(config: DictConfig | None, key: str, each: Field[Any]) -> str:
    """Return the default of a key: that of the composed configuration, or else the option's own."""
    raw: Any = OmegaConf.to_container(config) if config is not None else {}
    for part in key.split("."):
        raw = raw.get(part, REQUIRED) if isinstance(raw, dict) else REQUIRED
    value = default_of(each) if raw == REQUIRED else raw
    return "(must be given)" if value == REQUIRED else format_value(value)


def resolved_value(config: DictConfig | None, key: str, default: str) -> str:
    """Return the value that a default's interpolation has in a configuration, or ""."""
    if config is None or "${" not in default:
        return ""
    try:
        return format_value(OmegaConf.select(config, key))
    except (OmegaConfBaseException, ValueError):
        return ""  # it waits for a key that must be given


def format_value(value: Any) -> str:
    """Return a value as YAML writes it in one line."""
    if value is None:
        return "null"
    if value == "":
        return '""'
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)


def type_name(hint: Any) -> str:
    """Return the name of a type, such as "int or null"."""
    if get_origin(hint) in (Union, types.UnionType):
        names = [type_name(part) for part in get_args(hint) if part is not type(None)]
        return " or ".join([*names, "null"])
    if get_origin(hint):
        return re.sub(r"\w+\.", "", str(hint))
    return "any" if hint is Any else str(hint.__name__)


def find_keys(key: str, known: Sequence[KeyInfo]) -> list[KeyInfo]:
    """Return the description of a key, or those of all keys of a section.

    Raises:
        ValueError: there is no such key. The message names the nearest.
    """
    key = re.sub(r"^(evaluation\.concepts)\.[^.]+", r"\1.NAME", key)
    found = [info for info in known if info.key == key or info.key.startswith(f"{key}.")]
    if not found and key.partition(".")[0] in PLUGINS:  # a key of an entry
        found = [info for info in known if info.key == key.partition(".")[0]]
    if not found:
        names = [info.key for info in known]
        tails = [name for name in names if name.rpartition(".")[2] == key.rpartition(".")[2]]
        hint = f"did you mean {in_words(tails)}?" if tails else suggest(key, names)
        raise ValueError(f"{key}: there is no such key; {hint}")
    return found


def markdown() -> str:
    """Return the reference of every key in Markdown, a table for each section and method."""
    keys = describe_keys()
    parts = []
    for section, (title, _) in SECTIONS.items():
        chosen = [k for k in keys if k.key.rpartition(".")[0] == section and k.key not in PLUGINS]
        name = f"`{section}`: {title[0].lower()}{title[1:]}" if section else title
        parts.append(f"## {name}\n\n{keys_table(chosen)}")
    plugins = [key for key in keys if key.key in PLUGINS]
    parts.append(f"## Loggers and callbacks\n\n{keys_table(plugins)}")
    parts += [f"## `method={method}`\n\n{options_markdown(method)}" for method in METHODS]
    protocol = [info for section in PROTOCOL for info in of_schema(section, PROTOCOL[section])]
    parts.append(f"## `evaluation` of a published protocol\n\n{keys_table(protocol)}")
    return "\n\n".join(parts) + "\n"


def options_markdown(method: str) -> str:
    """Return the options of a method as a Markdown table, with the defaults of its file in conf/.

    A method without such a file has the defaults of its dataclass.
    """
    config = compose([f"method={method}"]) if method in group_choices("method") else None
    return keys_table(list(of_schema("method", METHODS[method].Options, config)))


def keys_table(keys: Sequence[KeyInfo]) -> str:
    """Return descriptions of keys as a Markdown table."""
    lines = ["| key | default | meaning | allowed |", "|---|---|---|---|"]
    for info in keys:
        allowed = "; ".join(filter(None, (info.kind, info.allowed)))
        meaning, allowed = (re.sub(r"([_*])", r"\\\1", text) for text in (info.meaning, allowed))
        cells = (f"`{info.key}`", f"`{info.default}`", meaning, allowed)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)
