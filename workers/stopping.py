"""How a task is told to stop: by SIGTERM in its time, by SIGUSR1 at once.

Not by a second SIGTERM: whoever stops a group of processes sends one to each, and the worker passes on its own.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SOON, AT_ONCE = signal.SIGTERM, signal.SIGUSR1


class StopRequest:
    """Whether a task is to stop; `soon` is set for both."""

    def __init__(self) -> None:
        self.soon = threading.Event()
        self.at_once = threading.Event()

    def hear(self, number: int, _frame: FrameType | None) -> None:
        """A signal handler."""
        if number == AT_ONCE:
            self.at_once.set()
        self.soon.set()


@contextmanager
def hearing_signals() -> Iterator[StopRequest]:
    """What the signals ask for that come during the block, in place of ending the process."""
    stop = StopRequest()
    previous = {number: signal.signal(number, stop.hear) for number in (SOON, AT_ONCE)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
