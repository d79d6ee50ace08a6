"""Handle SIGTERM, SIGHUP and Ctrl-C between two training steps."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

from unlearn.utils.errors import Interrupted


class SignalHandler:
    """A handler of SIGTERM, SIGHUP and Ctrl-C that lets a training step finish.

    SIGHUP says that the terminal is gone.

    During training the first signal is only noted, and the run ends after its step. Outside
    training, and at the second signal, the run ends at once.

    Attributes:
        signum: the signal that came; 0: none.
        training: whether a step may be under way.
    """

    def __init__(self) -> None:
        self.signum, self.training = 0, False
        self.terminals = [fd for fd in (1, 2) if os.isatty(fd)]  # of stdout and stderr

    def listen(self) -> dict[int, Any]:
        """Take the signals over, and return their former handlers.

        Only a main thread can; in another thread, do nothing and return no handlers.
        """
        if threading.current_thread() is not threading.main_thread():
            return {}
        ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN  # as nohup has it
        signals = [signal.SIGTERM, signal.SIGINT, *[signal.SIGHUP] * (not ignored)]
        return {s: signal.signal(s, self.receive) for s in signals}

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
        if signum == signal.SIGHUP:  # a write to the lost terminal would be an error
            with open(os.devnull, "w") as nowhere:
                for terminal in self.terminals:
                    os.dup2(nowhere.fileno(), terminal)
        if self.signum or not self.training:
            raise Interrupted(signum)
        self.signum = signum
