"""What Hydra refuses, said in one line that names the override and what is near it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException
from yaml import YAMLError

from unlearn.cli import files_of
from unlearn.names import check, hint, unknown_key

FLAGS = (  # of Hydra; not --experimental-rerun, which runs what a pickle says
    "-m", "--multirun", "-c", "--cfg", "--resolve", "-p", "--package", "-i", "--info"
)  # fmt: skip


def check_flags(arguments: Iterable[str]) -> None:
    """Refuse options that are not in `FLAGS`.

    Raises:
        ValueError: names it.
    """
    for argument in arguments:
        if argument.startswith("-"):
            check("option", argument.partition("=")[0], FLAGS)


@contextmanager
def said_plainly(overrides: Sequence[str]) -> Iterator[None]:
    """Inside, an error of Hydra, of OmegaConf or in a file of conf/ becomes a `ValueError`.

    Args:
        overrides: of the command line.

    Raises:
        ValueError: see above; one line.
    """
    try:
        yield
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise ValueError(reason_of(error, overrides)) from error


def reason_of(error: Exception, overrides: Sequence[str]) -> str:
    """One line: what is wrong with which override, and the nearest names that are valid."""
    if isinstance(error, OverrideParseException):
        reason = one_line(error.message.partition("See https")[0])
        return f"{error.override}: not of the form KEY=VALUE ({reason})"
    if isinstance(error, MissingConfigException) and "/" in (error.missing_cfg_file or ""):
        group, _, name = str(error.missing_cfg_file).partition("/")
        if known := files_of(group):
            return f"{group}={name}: no such file of conf/{group}; {hint(name, known)}"
    cause = error.__cause__ or error
    if isinstance(cause, ConfigKeyError | ConfigAttributeError) and cause.full_key:
        parent = cause.parent_node
        known = [str(key) for key in parent or () if key != "hydra"]
        key = str(cause.full_key)
        return unknown_key(key, value_of(key, overrides), known)
    return one_line(str(error).partition("Config search path")[0])


def value_of(key: str, overrides: Sequence[str]) -> str:
    """What the overrides give a key."""
    given = (override.partition("=") for override in overrides)
    return next((value for name, _, value in given if name.lstrip("+~") == key), "")


def one_line(text: str) -> str:
    """A text without line breaks."""
    return " ".join(text.split())
