"""Explain in one line what Hydra refuses, with the override and valid names near it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Sweep
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationResolutionError,
    OmegaConfBaseException,
)
from yaml import YAMLError

from unlearn.concepts.vocabulary import load_vocabulary
from unlearn.config.schema import RunOptions
from unlearn.config.search_path import check_user_files, conf_dir, group_choices
from unlearn.config.sections import Schema, parse_section, resolver_reason
from unlearn.utils.checks import check_choice, suggest, unknown_key_message
from unlearn.utils.files import parse_yaml


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split command-line arguments into paths and overrides.

    An argument that holds "=" or begins with "~" is an override, unless a file of that name exists.
    """
    paths = [a for a in arguments if Path(a).exists() or not ("=" in a or a.startswith("~"))]
    return paths, [a for a in arguments if a not in paths]


ENTRIES = r"(logger|callbacks|hydra)\.|evaluation\.concepts\."  # keys that can be taken away
OPTIONAL = ("experiment", "sweep")  # groups without a choice by default
NAMES = (str, list, Sweep, type(None))
GROUP_VALUES = (NAMES[:-1], NAMES)  # of the other groups, and of those
HYDRA_KEYS = r"hydra\.((launcher|sweeper|callbacks)(\.|$)|searchpath$|mode$)"
FLAGS = (  # Hydra's options, without --experimental-rerun, which runs code from a pickle
    "-m", "--multirun", "-c", "--cfg", "--resolve", "-p", "--package", "-i", "--info"
)  # fmt: skip


SHOWN = {  # what the options that show something take
    "--cfg": ("job", "hydra", "all"),
    "--info": ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath"),
}


def check_flags(arguments: Sequence[str]) -> None:
    """Refuse command-line options that are not in `FLAGS`, and values that they do not take.

    Raises:
        ValueError: names the option.
    """
    for argument, following in zip(arguments, [*arguments, ""][1:], strict=True):
        if not argument.startswith("-"):
            continue
        flag, sign, value = argument.partition("=")
        if flag not in FLAGS and (key := flag.lstrip("-")).partition(".")[0] in known_roots():
            said = value or ("VALUE" if "=" in following or not following else following)
            raise ValueError(f"{argument}: a key has no dashes; write {key}={said}")
        check_choice("option", flag, FLAGS)
        flag = {"-c": "--cfg", "-i": "--info", "-p": "--package"}.get(flag, flag)
        value = value if sign else following
        if flag in SHOWN and (sign or flag == "--cfg" or "=" not in following):
            check_choice(flag, value, SHOWN[flag] if value or flag == "--cfg" else ("",))
        if flag == "--package" and not value:
            raise ValueError("--package: the name of a package is needed, such as model")


def check_overrides(overrides: Sequence[str]) -> None:
    """Refuse what Hydra must not see: some overrides, and harmful files of the user's conf/.

    The overrides are those that take a key away, and keys of Hydra that have it write files itself.
    Entries of `logger`, `callbacks` and `evaluation.concepts` can be taken away, and whole groups.

    Raises:
        ValueError: names the override, and what is allowed, or the file.
        OverrideParseException: an override is not of the form KEY=VALUE.
    """
    check_user_files()
    groups = conf_groups()
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key = override.key_or_group
        if override.is_delete() and "." in key and not re.match(ENTRIES, key):
            raise ValueError(
                f"~{key}: {key} is missing then; {key}=VALUE sets it, and without the override it "
                "keeps its default"
            )
        if (
            key in groups
            and not override.is_delete()
            and not isinstance(override.value(), GROUP_VALUES[key in OPTIONAL])
        ):
            raise ValueError(
                f"{override.input_line}: the name of a file of conf/{key} is needed, such as "
                f"{', '.join(group_choices(key)[:3])}"
            )
        if re.match(r"hydra\.", key) and not re.match(HYDRA_KEYS, key):
            raise ValueError(
                f"{override.input_line}: is no key for a run; of Hydra's, these are: "
                "hydra/launcher, hydra/sweeper, hydra.launcher.*, hydra.sweeper.*, "
                "hydra.callbacks.*, hydra.searchpath, hydra.mode"
            )


def parse_options(overrides: Sequence[str], schema: type[Schema]) -> Schema:
    """Return the options of a command that composes no configuration.

    Args:
        overrides: arguments of the form KEY=VALUE.
        schema: a dataclass whose fields are made by `option`.

    Raises:
        ValueError: an argument is not of that form, or a value is not allowed.
    """
    given: dict[str, Any] = {}
    for override in overrides:
        key, sign, text = override.partition("=")
        if not sign or "${" in text:
            raise ValueError(f"{override}: not of the form KEY=VALUE, with a plain value")
        given[key] = parse_yaml(text, override)
    return parse_section(given, "", schema)


def known_roots() -> set[str]:
    """Return the names of the groups of conf/, and of the keys at the top of conf/train.yaml."""
    return conf_groups() | {each.name for each in fields(RunOptions)}


def conf_groups() -> set[str]:
    """Return the names of the groups of conf/."""
    return {path.name for path in conf_dir().iterdir() if path.is_dir()}


@contextmanager
def hydra_errors_as_value_errors(overrides: Sequence[str]) -> Iterator[None]:
    """Turn errors of Hydra, OmegaConf and YAML files inside the context into a `ValueError`.

    Args:
        overrides: those of the command line, which the message quotes.

    Raises:
        ValueError: such an error occurred; the message is one line of `explain_hydra_error`.
    """
    try:
        yield
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise ValueError(explain_hydra_error(error, overrides)) from error
    except RecursionError as error:
        raise ValueError("a value is nested too deeply, or holds itself") from error
    except (TypeError, AttributeError, LookupError, AssertionError) as error:
        if not raised_inside(error, ("hydra", "omegaconf", "antlr4", "yaml")):
            raise
        said = one_line(" ".join(overrides))
        raise ValueError(f"{said}: cannot be composed ({one_line(str(error))})") from error


def raised_inside(error: Exception, packages: Sequence[str]) -> bool:
    """Return whether the code that raised an error belongs to one of the packages."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    name = str(trace.tb_frame.f_globals.get("__name__")) if trace else ""
    return name.partition(".")[0] in packages


def explain_hydra_error(error: Exception, overrides: Sequence[str]) -> str:
    """Return one line that says what is wrong with which override, and suggests valid names."""
    if isinstance(error, OverrideParseException):
        reason = one_line(error.message.partition("See https")[0])
        hint = way_to_type(error.override)
        return f"{error.override}: not of the form KEY=VALUE ({reason}){hint}"
    if isinstance(error, MissingConfigException) and "/" in (error.missing_cfg_file or ""):
        group, _, name = str(error.missing_cfg_file).partition("/")
        if known := group_choices(group):
            if group in ("concept", "anchor"):  # each word of the vocabulary is one too
                known = [*known, *load_vocabulary().names]
            return f"{group}={name}: no such file of conf/{group}; {suggest(name, known)}"
    cause = error.__cause__ or error
    if isinstance(error, InterpolationResolutionError) and str(error).startswith("ValueError"):
        return resolver_reason(error)
    if isinstance(cause, ConfigKeyError | ConfigAttributeError) and cause.full_key:
        parent = cause.parent_node
        known = [str(key) for key in parent or () if key != "hydra"]
        key = str(cause.full_key)
        return unknown_key_message(key, override_value(key, overrides), known)
    return one_line(str(error).partition("Config search path")[0])


def way_to_type(override: str) -> str:
    """Return what to type in place of an override that does not parse, after a semicolon, or ""."""
    key, sign, value = override.partition("=")
    if not sign:
        groups = ("concept", "model", "method", "experiment")
        own = [group for group in groups if key in group_choices(group)]
        return f"; write {own[0]}={key}" if own else ""
    if value.startswith("~"):
        return f"; write {key}={Path(value).expanduser()}"
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    quoted = f'{key}="{escaped}"'
    try:
        OverridesParser.create().parse_override(quoted)
    except HydraException:
        return ""
    return f"; as text, write {shlex.quote(quoted)}"


def override_value(key: str, overrides: Sequence[str]) -> str:
    """Return the value that the overrides give a key, or "" where they do not name the key."""
    given = (override.partition("=") for override in overrides)
    return next((value for name, _, value in given if name.lstrip("+~") == key), "")


def one_line(text: str) -> str:
    """Return a text on one line, with single spaces between its words."""
    return " ".join(text.split())
