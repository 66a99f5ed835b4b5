"""How rows are spread over their labels, for more labels than memory holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt

from api_schemas.reports import MAX_SHOWN_LABEL, LabelBalance, LabelShare
from workers.data.contents import content_ids
from workers.data.occurrences import Occurrences
from workers.data.sorted_runs import Records

Integers = npt.NDArray[np.int64]

#: Labels whose names are kept. Those of more are told by a row that has them.
_NAMED = 100_000
_TOP = 10


class _Label(NamedTuple):
    rows: int
    first: int
    id: int


class Labels:
    """Takes labels with the numbers of their rows, in the order of the rows."""

    def __init__(self, path: Path) -> None:
        self._occurrences = Occurrences(path)
        self._names: dict[int, str] = {}
        self._ids: dict[str, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._occurrences.__exit__(kind, error, trace)

    def add(self, labels: Sequence[str], rows: Integers) -> Integers:
        """Count labels, (n,) beside the numbers of their rows; returns their ids."""
        ids = np.array([self._id(label) for label in labels], dtype=np.int64)
        self._occurrences.add(ids, rows)
        return ids

    def name(self, label_id: int, row: int) -> str:
        """The name of a label that the row has."""
        return self._names.get(label_id, f"(the label of row {row})")

    def balance(self, rows_per_label: int) -> LabelBalance:
        """The balance of at least one row, if a batch draws at most m = `rows_per_label` rows of a label together.

        So Σ ⌈n_l / m⌉ batches, over all labels l but the largest, can hold a second label.
        """
        labels = once = rows = groups = 0
        largest: list[_Label] = []
        smallest: list[_Label] = []
        for part in self._occurrences.groups():
            counts = part["count"]
            labels += len(part)
            rows += int(counts.sum())
            once += int((counts == 1).sum())
            groups += int((-(-counts // rows_per_label)).sum())
            largest += _some(part[np.lexsort((part["first"], -counts))][:_TOP])
            largest = sorted(largest, key=lambda label: (-label.rows, label.first))[:_TOP]
            smallest += _some(part[np.lexsort((part["first"], counts))][:1])
            smallest = sorted(smallest, key=lambda label: (label.rows, label.first))[:1]
        top = [self._share(label) for label in largest]
        return LabelBalance(
            labels=labels,
            once=once,
            largest=top[0],
            smallest=self._share(smallest[0]),
            largest_share=top[0].rows / rows,
            batches_with_two=groups - -(-top[0].rows // rows_per_label),
            top=top,
        )

    def _id(self, label: str) -> int:
        known = self._ids.get(label)
        if known is not None:
            return known
        [label_id] = content_ids([label]).tolist()
        if len(self._names) < _NAMED:
            self._names[label_id] = _shown(label)
            if len(label) <= MAX_SHOWN_LABEL:
                self._ids[label] = label_id
        return int(label_id)

    def _share(self, label: _Label) -> LabelShare:
        return LabelShare(label=self.name(label.id, label.first), rows=label.rows)


def _some(records: Records) -> list[_Label]:
    return [_Label(int(one["count"]), int(one["first"]), int(one["id"])) for one in records]


def _shown(label: str) -> str:
    return label if len(label) <= MAX_SHOWN_LABEL else label[: MAX_SHOWN_LABEL - 1] + "…"
