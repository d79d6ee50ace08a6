"""What can go wrong in the middle of a run, said in one message that names the way on."""

from __future__ import annotations

import errno
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM)


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


class Stop:
    """SIGTERM and Ctrl-C: inside training a wish that it grants after its step.

    Elsewhere, and at the second signal, they end the run at once.

    Attributes:
        signum: the signal that came; 0: none.
        training: a step may be under way.
    """

    def __init__(self) -> None:
        self.signum, self.training = 0, False

    def listen(self) -> dict[int, Any]:
        """Take the signals over; returns their former handlers. Only a main thread can."""
        if threading.current_thread() is not threading.main_thread():
            return {}
        return {s: signal.signal(s, self.receive) for s in (signal.SIGTERM, signal.SIGINT)}

    def __enter__(self) -> Stop:
        self.former = self.listen()
        return self

    def __exit__(self, *_: Any) -> None:
        for signum, handler in self.former.items():
            signal.signal(signum, handler)

    def receive(self, signum: int, frame: FrameType | None) -> None:
        """Note a signal, or end at once.

        Raises:
            Interrupted: no step is under way, or this is the second signal.
        """
        if self.signum or not self.training:
            raise Interrupted(signum)
        self.signum = signum


@contextmanager
def explained(weights: Path, less: str = "a lower drawing_batch") -> Iterator[None]:
    """Inside, a disk or a memory that gives no more becomes a `RunError`.

    Args:
        weights: what training ends with; where they are there, it is the evaluation that failed.
        less: what the evaluation needs less memory with.

    Raises:
        RunError: see above.
    """
    on = "the same command goes on"
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise RunError(f"no space left on the disk ({error}); make room, then {on}") from error
        if error.errno in REFUSED:
            raise RunError(f"not allowed to write ({error}); allow it, then {on}") from error
        raise
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        memory = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not memory and "can't allocate memory" not in str(error):
            raise
        reason = str(error).strip().partition("\n")[0]
        if weights.exists():
            raise RunError(
                f"out of memory in the evaluation ({reason}): {on} with {less}"
            ) from error
        raise RunError(
            f"out of memory in training ({reason}): lower drawing_batch, if images were being "
            "drawn, or else batch_size, with method.accumulate as many times higher for the same "
            "step, or take trainer.precision=bf16-mixed, in another run_dir"
        ) from error
