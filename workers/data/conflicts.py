"""Texts that stand under two labels, among more texts than memory holds."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt

from api_schemas.reports import MAX_LISTED_CONFLICTS
from workers.data.sorted_runs import Records, SortedRuns, group_starts

Integers = npt.NDArray[np.int64]

_LABELLED = np.dtype([("id", np.int64), ("label", np.int64), ("row", np.int64)])
#: Rows that are held before they are sorted and written. A text that recurs under one label is written once.
_HELD = 256 * 1024


class ConflictFound(NamedTuple):
    """The first two rows of one text that have different labels, with the ids of those."""

    rows: tuple[int, int]
    label_ids: tuple[int, int]


class ConflictSearch:
    """Takes ids of texts with ids of their labels and numbers of their rows, in the order of the rows."""

    def __init__(self, path: Path) -> None:
        self._runs = SortedRuns(path, _LABELLED)
        self._pieces: list[Records] = []
        self._held = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._runs.__exit__(kind, error, trace)

    def add(self, ids: Integers, labels: Integers, rows: Integers) -> None:
        """All (n,)."""
        piece = np.empty(len(ids), dtype=_LABELLED)
        piece["id"], piece["label"], piece["row"] = ids, labels, rows
        self._pieces.append(piece)
        self._held += len(piece)
        if self._held >= _HELD:
            self._write()

    def found(self) -> tuple[int, list[ConflictFound]]:
        """How many texts have two labels or more, and the first of them by row."""
        self._write()
        count, first = 0, list[ConflictFound]()
        for part in self._runs.parts():
            records = _once_a_label(part)
            starts = _conflicting(records["id"])
            count += len(starts)
            first = sorted(first + _first_of(records, starts), key=lambda conflict: conflict.rows)
            del first[MAX_LISTED_CONFLICTS:]
        return count, first

    def _write(self) -> None:
        if self._pieces:
            records = np.concatenate(self._pieces)
            self._runs.append(_once_a_label(records[np.argsort(records["id"], kind="stable")]))
            self._pieces, self._held = [], 0


def _once_a_label(records: Records) -> Records:
    """The first record of each text and label, of records sorted by text and then by row; sorted likewise."""
    order = np.lexsort((records["row"], records["label"], records["id"]))
    by_label = records[order]
    same = (by_label["id"][1:] == by_label["id"][:-1]) & (by_label["label"][1:] == by_label["label"][:-1])
    kept = by_label[np.concatenate([np.ones(min(1, len(records)), dtype=bool), ~same])]
    by_row: Records = kept[np.lexsort((kept["row"], kept["id"]))]
    return by_row


def _conflicting(ids: Integers) -> Integers:
    """Where the texts begin that have two records or more."""
    starts = group_starts(ids)
    conflicting: Integers = starts[np.diff(np.append(starts, len(ids))) > 1]
    return conflicting


def _first_of(records: Records, starts: Integers) -> list[ConflictFound]:
    by_row = starts[np.argsort(records["row"][starts], kind="stable")[:MAX_LISTED_CONFLICTS]]
    return [
        ConflictFound((int(one["row"]), int(other["row"])), (int(one["label"]), int(other["label"])))
        for one, other in zip(records[by_row], records[by_row + 1], strict=True)
    ]
