"""Define the errors that end a run, and print the one line that a user reads."""

from __future__ import annotations

import signal
import sys
import tempfile
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from unlearn.utils.credentials import hide_secrets

if TYPE_CHECKING:  # torch would slow `unlearn --help`
    from torch import Tensor


def exit_with_user_error(error: Exception) -> NoReturn:
    """Print a user's error as one line on stderr, without secrets, and exit with status 2.

    Raises:
        SystemExit: always.
    """
    print(f"unlearn: {printable_line(hide_secrets(str(error)))}", file=sys.stderr)
    raise SystemExit(2) from error


def printable_line(text: str) -> str:
    """Return a text on one line, with escapes in place of what a terminal cannot show.

    A terminal would obey control characters, which a file's name or a value may hold.
    """
    words = " ".join(text.split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in words)


def exit_with_bug(error: BaseException) -> NoReturn:
    """Write the details of an error that nothing foresaw to a file, and exit with status 1.

    One line on stderr names the error, and the file. The file lies in the working folder, or else
    among the system's temporary files. Neither the line nor the file holds a secret.

    Raises:
        SystemExit: always.
    """
    name = f"unlearn-error-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}.txt"
    given = " ".join(sys.argv[1:])
    details = "".join(traceback.format_exception(error))
    for folder in (Path(), Path(tempfile.gettempdir())):
        try:
            path = folder / name
            path.write_text(hide_secrets(f"unlearn {given}\n\n{details}"), encoding="utf-8")
            break
        except (OSError, ValueError):
            path = None
    reason = printable_line(hide_secrets(str(error)))[:200]
    where = f"{path} has the details" if path else "no file could be written with the details"
    print(
        f"unlearn: {type(error).__name__}: {reason}: an error that nothing foresaw; "
        f"{where}. Please report it with that file, as CONTRIBUTING.md says",
        file=sys.stderr,
    )
    raise SystemExit(1) from error


class RunError(RuntimeError):
    """An error that stops a run; the message says why, and what to do."""


class LostRankError(RunError):
    """An error that says that a process of a DDP run is gone."""


class NotFiniteError(RunError):
    """An error that says that a loss is NaN or infinite.

    Args:
        step: the training step, counted from 0.
        losses: the step's losses, by name.
        batch: the step's batch.
    """

    def __init__(self, step: int, losses: dict[str, float], batch: dict[str, Tensor]) -> None:
        self.step, self.losses, self.batch = step, losses, batch
        values = ", ".join(f"{name} is {value}" for name, value in losses.items())
        super().__init__(f"in step {step} {values}")

    def __reduce__(self) -> tuple[Any, ...]:
        """Return what another process rebuilds the error from: the reason, without the batch."""
        return type(self), (self.step, self.losses, {})


class Interrupted(SystemExit):
    """An exit after a signal, with the shells' status: 128 + the signal's number."""

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.name = signal.Signals(signum).name

    def __reduce__(self) -> tuple[Any, ...]:
        """Return what another process rebuilds the exit from: the signal's number."""
        return type(self), (self.code - 128,)  # type: ignore[operator]
