"""Take SIGTERM and Ctrl-C between two steps."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from unlearn.utils.errors import Interrupted


class SignalHandler:
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

    def __enter__(self) -> SignalHandler:
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
