"""Run the console script: `unlearn COMMAND [overrides]`."""

from __future__ import annotations

import os
import signal
import sys
from importlib import import_module
from importlib.metadata import version

from unlearn.cli.help import HELP, USAGE, group_choices_text
from unlearn.utils.checks import suggest
from unlearn.utils.credentials import check_arguments
from unlearn.utils.errors import RunError, exit_with_bug, exit_with_user_error

COMMANDS = {  # by command: its module, imported on use, whose `run` takes the arguments
    "train": "train",
    "evaluate": "evaluate",
    "sample": "sample",
    "export": "export",
    "merge": "merge",
    "report": "report",
    "demo": "demo",
    "sweep-report": "sweep_report",
    "new-concept": "new_concept",
    "config": "config",
    "list": "list",
}
COMPLETION = ("-sc", "--shell-completion")  # of Hydra, whose script names no command before it


def main() -> None:
    """Run the command that the command line names.

    A user's error is told in one line on stderr, and the exit status is then 2. An error that
    nothing foresaw is told in one line too, which names a file with the details; the status is 1.
    """
    try:
        run_command(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError as error:  # such as `| head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(128 + signal.SIGPIPE) from error


def run_command(arguments: list[str]) -> None:
    """Run the command that the arguments name, as `main` says.

    Raises:
        SystemExit: the command failed.
    """
    if arguments == ["--version"]:
        print(f"unlearn {version('unlearn-diffusion')}")
        return
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE)
        return
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # advice on packages not used here
    command, *rest = arguments
    if command == "train" and rest and rest[0] in COMPLETION:
        command, *rest = rest
    if command in COMPLETION:
        module = "completion"
    elif command in COMMANDS:
        module = COMMANDS[command]
    else:
        exit_with_user_error(
            ValueError(f"{command!r} is not a command; {suggest(command, list(COMMANDS))}")
        )
    if {"-h", "--help"} & {*rest}:
        print(HELP[command].replace("{choices}", group_choices_text(command)))
        return
    try:
        check_arguments(rest)
        import_module(f"unlearn.cli.{module}").run(rest)
    except BrokenPipeError:
        raise
    except (ValueError, OSError, RunError) as error:
        exit_with_user_error(error)
    except KeyboardInterrupt as error:
        print("unlearn: stopped by SIGINT", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from error
    except Exception as error:
        exit_with_bug(error)


if __name__ == "__main__":
    main()
