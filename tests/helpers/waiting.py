"""A run that waits for a signal, for tests that start it in other processes."""

from __future__ import annotations

import os
import time
from pathlib import Path

from unlearn.training.signals import SignalHandler


def wait_for_signal(run_dir: Path) -> None:
    """Say which process this is, and wait for a signal."""
    with SignalHandler() as stop:
        stop.training = True
        (run_dir / "process").write_text(str(os.getpid()))
        while not stop.signum:
            time.sleep(0.01)
        (run_dir / "stopped").touch()
