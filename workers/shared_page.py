"""What a training and the process that watches it tell each other without a server: a page of memory.

The watcher writes until when the training may go on, the training after which step it is. Each reads the other's word
however busy, stopped or dead the other is.
"""

from __future__ import annotations

import functools
import math
import mmap
import os
import struct
import time
from pathlib import Path

#: Where the training finds the page of its watcher.
VARIABLE = "LIKENESS_SHARED_PAGE"
_UNTIL = struct.Struct("=d")
_STEP = struct.Struct("=q")
_BYTES = _UNTIL.size + _STEP.size


class SharedPage:
    """The page. Times are of the monotonic clock, which is the same in all processes of a machine."""

    def __init__(self, descriptor: int) -> None:
        """descriptor: of a file of zeros, of the page's size; -1 for a page that nobody else has."""
        self._memory = mmap.mmap(descriptor, _BYTES)
        self._descriptor = descriptor

    @classmethod
    def new(cls) -> SharedPage:
        """A page to be shared, gone with the processes that have it. Where memory has no name, it can't be shared."""
        descriptor = -1
        if hasattr(os, "memfd_create"):
            descriptor = os.memfd_create("likeness-shared-page")
            os.truncate(descriptor, _BYTES)
        page = cls(descriptor)
        page.until = math.inf
        return page

    @property
    def environment(self) -> dict[str, str]:
        """What a training's environment needs for it, or whoever starts for it, to find the page."""
        return {} if self._descriptor < 0 else {VARIABLE: f"/proc/{os.getpid()}/fd/{self._descriptor}"}

    @property
    def until(self) -> float:
        """When the training must have begun to stop."""
        until: float = _UNTIL.unpack_from(self._memory)[0]
        return until

    @until.setter
    def until(self, moment: float) -> None:
        _UNTIL.pack_into(self._memory, 0, moment)

    @property
    def step(self) -> int:
        """How many steps have been taken."""
        step: int = _STEP.unpack_from(self._memory, _UNTIL.size)[0]
        return step

    @step.setter
    def step(self, step: int) -> None:
        _STEP.pack_into(self._memory, _UNTIL.size, step)

    def is_over(self) -> bool:
        """Whether the training must stop, because nobody has prolonged its lease."""
        return time.monotonic() >= self.until

    def close(self) -> None:
        """Let go of the page. It is gone once everybody has."""
        self._memory.close()
        if self._descriptor >= 0:
            os.close(self._descriptor)


@functools.cache
def page_of_watcher() -> SharedPage:
    """In a training: the page of whoever watches it, or one of its own that never ends it, if nobody does."""
    try:
        path = Path(os.environ[VARIABLE])
        with path.open("r+b", buffering=0) as shared:
            return SharedPage(os.dup(shared.fileno()))
    except (KeyError, OSError):
        return SharedPage.new()
