"""Errors that a run ends with, and the one line that a user reads."""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING, Any, NoReturn

from unlearn.utils.credentials import hide_secrets

if TYPE_CHECKING:  # torch would slow `unlearn --help`
    from torch import Tensor


def refuse(error: Exception) -> NoReturn:
    """A user's error: one line on stderr, which holds no secret, and exit status 2."""
    print(f"unlearn: {hide_secrets(str(error))}", file=sys.stderr)
    raise SystemExit(2) from error


class RunError(RuntimeError):
    """A run could not go on; the message says why, and what to do."""


class LostRankError(RunError):
    """A process of a DDP run is gone."""


class NotFiniteError(RunError):
    """A loss is NaN or infinite.

    Args:
        step: the step, from 0.
        losses: its losses.
        batch: its batch.
    """

    def __init__(self, step: int, losses: dict[str, float], batch: dict[str, Tensor]) -> None:
        self.step, self.losses, self.batch = step, losses, batch
        values = ", ".join(f"{name} is {value}" for name, value in losses.items())
        super().__init__(f"in step {step} {values}")

    def __reduce__(self) -> tuple[Any, ...]:
        """For another process, which needs the reason and not the batch."""
        return type(self), (self.step, self.losses, {})


class Interrupted(SystemExit):
    """SIGTERM or Ctrl-C; the exit status is 128 + the signal's number, as shells have it."""

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.name = signal.Signals(signum).name

    def __reduce__(self) -> tuple[Any, ...]:
        """For another process."""
        return type(self), (self.code - 128,)  # type: ignore[operator]
