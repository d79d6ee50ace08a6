"""Handle SIGTERM and Ctrl-C between two training steps."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from unlearn.utils.errors import Interrupted


class SignalHandler:
    """A handler of SIGTERM and Ctrl-C that lets a training step finish.

    During training the first signal is only noted, and the run ends after its step. Outside
    training, and at the second signal, the run ends at once.

    Attributes:
        signum: the signal that came; 0: none.
        training: whether a step may be under way.
    """

    def __init__(self) -> None:
        self.signum, self.training = 0, False

    def listen(self) -> dict[int, Any]:
        """Take the signals over, and return their former handlers.

        Only a main thread can; in another thread, do nothing and return no handlers.
        """
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
        """Note a signal, or end the run at once.

        Raises:
            Interrupted: no step is under way, or this is the second signal.
        """
        if self.signum or not self.training:
            raise Interrupted(signum)
        self.signum = signum
