"""What was read from the database and may still hold: the most recently used of it, until all of it is forgotten."""

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Remembered(Generic[Key, Value]):
    """A bounded mapping that threads may share. The least recently used goes first.

    Something may change after it was read and be forgotten before it is stored, which would then be kept for ever. So
    whoever reads takes the `generation` first, and what it has read is kept only if nothing was forgotten since.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._entries: OrderedDict[Key, tuple[Value, float]] = OrderedDict()
        self._generation = 0

    @property
    def generation(self) -> int:
        """How often everything was forgotten."""
        return self._generation

    def get(self, key: Key) -> Value | None:
        """What is remembered of a key, unless its time is over."""
        with self._lock:
            value, until = self._entries.get(key, (None, -math.inf))
            if time.monotonic() >= until:
                self._entries.pop(key, None)
                return None
            self._entries.move_to_end(key)
            return value

    def put(self, key: Key, value: Value, *, generation: int, until: float = math.inf) -> None:
        """Remember what was read since `generation`, until a time of the monotonic clock."""
        with self._lock:
            if generation != self._generation:
                return
            self._entries[key] = (value, until)
            self._entries.move_to_end(key)
            if len(self._entries) > self._most:
                self._entries.popitem(last=False)

    def forget(self) -> None:
        """Forget everything, also what is being read now."""
        with self._lock:
            self._generation += 1
            self._entries.clear()
