"""How slow the machine is just now, measured all the time, so that nobody is blamed for what others compute on it."""

from __future__ import annotations

import threading
import time

_EVERY_SECONDS = 1.0
_WORK_SECONDS = 0.01  # of the processor, each time
_REMEMBERED = 20
_FIRST_LOOK_SECONDS = 4.0


class Pace:
    """A thread that needs the processor now and then, and looks how long it waits for it."""

    def __init__(self) -> None:
        self._recent: list[float] = []
        self._all: list[float] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pace", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def measure(self) -> float:
        """How slow the machine is before anything is begun on it: looks for some seconds."""
        time.sleep(_FIRST_LOOK_SECONDS)
        return self.slowness

    @property
    def slowness(self) -> float:
        """How many times as long as alone work takes now: 1 on an idle machine."""
        recent = self._recent[-_REMEMBERED:]
        return max(1.0, sum(recent) / len(recent)) if recent else 1.0

    @property
    def mean(self) -> float:
        """The same, over all of the time."""
        return sum(self._all) / len(self._all) if self._all else 1.0

    def stretch(self, seconds: float) -> float:
        """So many seconds of an idle machine, now."""
        return seconds * self.slowness

    def _run(self) -> None:
        while not self._stop.wait(_EVERY_SECONDS):
            wall, used = time.monotonic(), time.thread_time()
            while time.thread_time() - used < _WORK_SECONDS:
                pass
            ratio = (time.monotonic() - wall) / _WORK_SECONDS
            self._recent = [*self._recent[1 - _REMEMBERED :], ratio]
            self._all.append(ratio)
