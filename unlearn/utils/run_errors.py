"""Turn a full disk or exhausted memory into an error that says how to go on."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from unlearn.utils.errors import RunError

# the operating system's errors of a full disk, and of a disk that may not be written
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)


@contextmanager
def as_run_errors(weights: Path, less: str = "a lower sampling_batch_size") -> Iterator[None]:
    """Turn a full disk or exhausted memory inside the block into a `RunError`.

    Args:
        weights: the file that training ends with; where the file exists, the evaluation failed.
        less: what lowers the evaluation's memory, for the message.

    Raises:
        RunError: the disk is full or not writable, or the memory is exhausted.
    """
    on = "the same command goes on"
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL:
            raise RunError(f"no space left on the disk ({error}); make room, then {on}") from error
        if error.errno in NOT_WRITABLE:
            raise RunError(f"not allowed to write ({error}); allow it, then {on}") from error
        raise
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        # PyTorch's CPU allocator raises a plain RuntimeError
        memory = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not memory and "can't allocate memory" not in str(error):
            raise
        reason = str(error).strip().partition("\n")[0]
        if weights.exists():
            raise RunError(
                f"out of memory in the evaluation ({reason}): {on} with {less}"
            ) from error
        raise RunError(
            f"out of memory in training ({reason}): lower sampling_batch_size, if images were "
            "being drawn, or else batch_size, with method.accumulate_grad_batches as many times "
            "higher for the same step, or take trainer.precision=bf16-mixed, in another run_dir"
        ) from error
