"""How often each content occurs, and in which two rows first, for more contents than memory holds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from workers.data.sorted_runs import Records, SortedRuns, group_starts

Integers = npt.NDArray[np.int64]

OCCURRENCE = np.dtype([("id", np.int64), ("count", np.int64), ("first", np.int64), ("second", np.int64)])
#: In place of a second row where there is none.
NO_ROW = -1
#: Ids that are held before they are sorted and written. Ids that recur among them are written once, so that one
#: that stands in every row doesn't fill the part of the range it falls into.
_HELD = 256 * 1024


class Occurrences:
    """Takes ids (see `workers.data.contents`) with the numbers of their rows, in the order of the rows."""

    def __init__(self, path: Path) -> None:
        self._runs = SortedRuns(path, OCCURRENCE)
        self._ids: list[Integers] = []
        self._rows: list[Integers] = []
        self._held = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._runs.__exit__(kind, error, trace)

    def add(self, ids: Integers, rows: Integers) -> None:
        """Count each id once, in the row beside it; both (n,)."""
        self._ids.append(ids)
        self._rows.append(rows)
        self._held += len(ids)
        if self._held >= _HELD:
            self._write()

    def groups(self) -> Iterator[Records]:
        """One OCCURRENCE for each different id, sorted by id, in parts that fit memory."""
        self._write()
        for part in self._runs.parts():
            yield _summed(part)

    def _write(self) -> None:
        if not self._held:
            return
        ids, rows = np.concatenate(self._ids), np.concatenate(self._rows)
        order = np.argsort(ids, kind="stable")
        records = np.empty(len(ids), dtype=OCCURRENCE)
        records["id"], records["count"], records["first"], records["second"] = ids[order], 1, rows[order], NO_ROW
        self._runs.append(_summed(records))
        self._ids, self._rows, self._held = [], [], 0


def _summed(records: Records) -> Records:
    """One record for each id of records that are sorted by id and then by row."""
    starts = group_starts(records["id"])
    summed = records[starts]
    if len(starts) == len(records):
        return summed
    summed["count"] = np.add.reduceat(records["count"], starts)
    sizes = np.diff(np.append(starts, len(records)))
    alone = np.flatnonzero((sizes > 1) & (summed["second"] == NO_ROW))
    summed["second"][alone] = records["first"][starts[alone] + 1]
    return summed
