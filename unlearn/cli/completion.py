"""Complete `unlearn COMMAND ...` in a shell: Hydra's completion, behind the command's name."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from typing import Any

from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.bash_completion import BashCompletion
from hydra._internal.core_plugins.fish_completion import FishCompletion
from hydra._internal.core_plugins.zsh_completion import ZshCompletion
from hydra._internal.utils import create_config_search_path
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.completion_plugin import CompletionPlugin
from omegaconf.errors import OmegaConfBaseException

from unlearn.cli.help import HELP
from unlearn.config import recipes  # noqa: F401 - registers a resolver
from unlearn.config.search_path import conf_dir, extend_search_path, group_choices
from unlearn.config.vocabulary_words import VocabularySource
from unlearn.utils.checks import check_choice

ACTIONS = ("install", "uninstall", "query")
SHELLS: dict[str, Any] = {  # Hydra's plugins
    "bash": BashCompletion,
    "zsh": ZshCompletion,
    "fish": FishCompletion,
}
ROOTS = {"train": "train", "config": "train", "evaluate": "evaluate"}  # by command
FOLDERS = {"hydra=", "recipe/"}  # of conf/, which are no groups to choose from
# not of hydra/: launchers come from packages that are not looked for here
OVERRIDE = re.compile(r"['\"]?(\+{0,2}(?!hydra/)[\w./@]+=|~)")
USAGE = 'usage: eval "$(unlearn train -sc install=bash)"'


def run(arguments: Sequence[str]) -> None:
    """Print a shell's completion script, or the words that complete its command line.

    Args:
        arguments: `install=SHELL`, `uninstall=SHELL`, or `query=SHELL`, which reads the command
            line from the environment variable COMP_LINE.

    Raises:
        ValueError: there is no such action or shell.
    """
    if len(arguments) != 1:
        raise ValueError(USAGE)
    action, _, shell = arguments[0].partition("=")
    check_choice("unlearn train -sc", action, ACTIONS)
    check_choice(f"unlearn train -sc {action}", shell, tuple(SHELLS))
    plugin = SHELLS[shell](config_loader())
    if action == "query":
        for word in complete(plugin, os.environ.get("COMP_LINE", "")):
            print(word)
        return
    if action == "uninstall" and shell != "fish":  # Hydra leaves the rule, but not its function
        print(f"complete -r {plugin._get_exec()} 2> /dev/null")
    getattr(plugin, action)()


def config_loader() -> ConfigLoaderImpl:
    """Return Hydra's loader of the files of conf/, without the packages of `hydra_plugins`.

    Those import torch, and a shell cannot wait for it.
    """
    sys.modules["hydra_plugins"] = None  # type: ignore[assignment]
    version.setbase("1.3")
    Plugins.instance().register(VocabularySource)
    path = create_config_search_path(f"file://{conf_dir()}")
    schema = path.get_path().pop()
    extend_search_path(path)
    path.get_path().append(schema)  # Hydra wants it last
    return ConfigLoaderImpl(path)


def complete(plugin: CompletionPlugin, line: str) -> list[str]:
    """Return the words that the last word of a command line may become; none where it is a path.

    Args:
        plugin: of the shell.
        line: the command line so far, which begins with the program's name.
    """
    _, *words = f"{line}|".split()
    *words, last = words or ["|"]
    last = last.removesuffix("|")
    if not words:
        return [name for name in HELP if name.startswith(last)]
    command, *words = words
    if command not in ROOTS:
        return []
    given = [plain_override(word) for word in words if OVERRIDE.match(word) or word == "-m"]
    try:
        found: list[Any] = plugin._query(ROOTS[command], " ".join([*given, last]))
    except (HydraException, OmegaConfBaseException, ValueError):
        return []  # an override before this word is not valid
    group = last.partition("=")[0]
    names = {with_sign(str(word)) for word in found} - FOLDERS
    names |= {f"{group}={name}" for name in group_choices(group)} if "=" in last else set()
    names = {name for name in names if name.startswith(last)}
    return sorted(name.removesuffix("=") if command == "config" else name for name in names)


def with_sign(word: str) -> str:
    """Return a suggestion of Hydra's, whose groups that hold folders too lack their "="."""
    return word if word[-1] in "./" or "=" in word or word[0] == "~" else f"{word}="


def plain_override(word: str) -> str:
    """Return an override without quotes; of several concepts together, the first alone."""
    return re.sub(r"^concept=\[([^,\]]*).*$", r"concept=\1", word.strip("'\""))
