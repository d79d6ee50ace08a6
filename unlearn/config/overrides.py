"""Explain in one line what Hydra refuses, with the override and valid names near it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationResolutionError,
    OmegaConfBaseException,
)
from yaml import YAMLError

from unlearn.config.search_path import group_choices
from unlearn.config.sections import resolver_reason
from unlearn.utils.checks import check_choice, suggest, unknown_key_message


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split command-line arguments into paths and overrides.

    An argument that holds "=" or begins with "~" is an override, unless a file of that name exists.
    """
    paths = [a for a in arguments if Path(a).exists() or not ("=" in a or a.startswith("~"))]
    return paths, [a for a in arguments if a not in paths]


FLAGS = (  # Hydra's options, without --experimental-rerun, which runs code from a pickle
    "-m", "--multirun", "-c", "--cfg", "--resolve", "-p", "--package", "-i", "--info"
)  # fmt: skip


def check_flags(arguments: Iterable[str]) -> None:
    """Refuse command-line options that are not in `FLAGS`.

    Raises:
        ValueError: names the option.
    """
    for argument in arguments:
        if argument.startswith("-"):
            check_choice("option", argument.partition("=")[0], FLAGS)


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


def explain_hydra_error(error: Exception, overrides: Sequence[str]) -> str:
    """Return one line that says what is wrong with which override, and suggests valid names."""
    if isinstance(error, OverrideParseException):
        reason = one_line(error.message.partition("See https")[0])
        return f"{error.override}: not of the form KEY=VALUE ({reason})"
    if isinstance(error, MissingConfigException) and "/" in (error.missing_cfg_file or ""):
        group, _, name = str(error.missing_cfg_file).partition("/")
        if known := group_choices(group):
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


def override_value(key: str, overrides: Sequence[str]) -> str:
    """Return the value that the overrides give a key, or "" where they do not name the key."""
    given = (override.partition("=") for override in overrides)
    return next((value for name, _, value in given if name.lstrip("+~") == key), "")


def one_line(text: str) -> str:
    """Return a text on one line, with single spaces between its words."""
    return " ".join(text.split())
