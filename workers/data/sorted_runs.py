"""More records than memory holds, read back in the order of their ids."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

Records = npt.NDArray[np.void]

#: How many records are sorted at a time, unless more share one id.
_AT_ONCE = 1024 * 1024
_IDS = 2**63


class SortedRuns:
    """A file of runs, each sorted by the field `id`: 63 bits of a hash, spread evenly.

    Since they are, a part of their range holds its share of the records, and a part is sorted at a time.
    """

    def __init__(self, path: Path, dtype: np.dtype[Any]) -> None:
        self._dtype = dtype
        self._ends = [0]  # in records
        self._file = path.open("w+b")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def append(self, run: Records) -> None:
        """Add records that are sorted by id. Raises OSError."""
        self._file.seek(0, 2)
        # Not by NumPy, whose error on a full disk has no number that would tell it from others.
        self._file.write(run.view(np.uint8).data)
        self._ends.append(self._ends[-1] + len(run))

    def parts(self, at_once: int = _AT_ONCE) -> Iterator[Records]:
        """All records by id, equal ids in the order of their runs. No id is in two parts."""
        count = 1 + self._ends[-1] // at_once
        bounds = np.array([_IDS * part // count for part in range(1, count)], dtype=np.int64)
        cuts = [self._cuts(start, end, bounds) for start, end in self._runs()]
        for part in range(count):
            pieces = [self._read(each[part], each[part + 1]) for each in cuts]
            if pieces:
                records = np.concatenate(pieces)
                yield records[np.argsort(records["id"], kind="stable")]

    def _runs(self) -> Iterator[tuple[int, int]]:
        return zip(self._ends[:-1], self._ends[1:], strict=True)

    def _cuts(self, start: int, end: int, bounds: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """(parts + 1,): where in the file each part of a run begins, and where the last one ends."""
        inner = np.searchsorted(self._read(start, end)["id"], bounds) if len(bounds) else bounds
        return np.array([start, *(start + inner), end])

    def _read(self, start: int, end: int) -> Records:
        # Not mapped: pages of a map count as the process' own for whoever limits its memory.
        self._file.seek(int(start) * self._dtype.itemsize)
        return np.fromfile(self._file, dtype=self._dtype, count=int(end - start))


def group_starts(ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Where each group of equal ids begins in sorted ids."""
    return np.flatnonzero(np.concatenate([np.ones(min(1, len(ids)), dtype=bool), ids[1:] != ids[:-1]]))
