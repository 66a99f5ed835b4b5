"""Whether any key comes again, among more keys than memory holds."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workers.data.sorted_runs import SortedRuns

#: Keys that are held before they are sorted and written: some 70 MB of them.
_HELD = 1_000_000


class Recurrence:
    """Takes keys of 63 bits, spread evenly. A few keys are looked up as they come; only more of them go to a file."""

    def __init__(self, stack: ExitStack, *, scratch: Path | None = None) -> None:
        """The file, in `scratch` or the system's directory, is gone when `stack` is closed."""
        self._stack = stack
        self._scratch = scratch
        self._held: set[int] = set()
        self._runs: SortedRuns | None = None
        self.found = False  # for certain; `search` finds the others

    @property
    def several(self) -> bool:
        """Whether two keys differ."""
        return self._runs is not None or len(self._held) > 1

    def add(self, key: int) -> None:
        """Take another key. Raises OSError if there is no room for the file."""
        self.found = self.found or key in self._held
        if self.found and self.several:
            return
        self._held.add(key)
        if len(self._held) >= _HELD:
            self._write()

    def search(self) -> bool:
        """Whether a key has come again."""
        if self.found or self._runs is None:
            return self.found
        self._write()
        self.found = any(bool((part["id"][1:] == part["id"][:-1]).any()) for part in self._runs.parts())
        return self.found

    def _write(self) -> None:
        # Here, since few files have so many labels, and the service reads the others without numpy.
        import numpy as np

        from workers.data.sorted_runs import SortedRuns

        if self._runs is None:
            folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="likeness-", dir=self._scratch)))
            self._runs = self._stack.enter_context(SortedRuns(folder / "keys", np.dtype([("id", np.int64)])))
        run = np.empty(len(self._held), dtype=[("id", np.int64)])
        run["id"] = np.sort(np.fromiter(self._held, dtype=np.int64, count=len(self._held)))
        self._runs.append(run)
        self._held.clear()
