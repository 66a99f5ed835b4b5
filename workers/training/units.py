"""Units: what enters a batch together, or waits together.

A unit is a row, or some texts of one label. Units are numbered from 0 in each epoch, and looked up many at a
time: there is no object for one. Letters: k units asked for, n their items.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from api_schemas.files import DataFormat
from workers.data.prepared import Prepared

Indices = npt.NDArray[np.int64]

#: Items of a row, for the formats in which all rows have as many.
_WIDTHS: Mapping[DataFormat, int] = {"pairs": 2, "vector_pairs": 2, "labels": 1, "vectors": 1, "texts": 1}
#: Texts of one label are cut into groups of like length out of so many groups' texts at a time.
_GROUPS_SORTED_TOGETHER = 16


def numbered(n: int) -> npt.NDArray[np.integer[Any]]:
    """0, 1, … n − 1, in 4 bytes each where that is enough."""
    return np.arange(n, dtype=np.int32 if n < 2**31 else np.int64)


class Items(NamedTuple):
    """The items of k units behind each other."""

    indices: Indices  # (n,)
    counts: Indices  # (k,)


class Units(Protocol):
    """The units of one epoch."""

    largest: int  # the most rows a unit has

    def __len__(self) -> int: ...

    def rows(self, units: Indices) -> Indices:
        """How many rows of the dataset each has, (k,)."""

    def items(self, units: Indices) -> Items: ...

    def lengths(self, units: Indices) -> tuple[Indices, Indices]:
        """Tokens of what asks and of what answers, (k,) each: the longest item of a unit decides."""

    def contrasts(self, units: Indices) -> bool:
        """Whether among these some item has a positive and some item a negative."""

    def completing(self, units: Indices, candidates: Indices) -> npt.NDArray[np.bool_]:
        """Which of the candidates would, each alone, make some units, one or more, contrast; (candidates,)."""


class RowUnits:
    """Each row is a unit, and its items are alike: pairs, triplets, views, and texts whose views are made later."""

    largest = 1

    def __init__(self, data: Prepared) -> None:
        self._data = data
        self._width = _WIDTHS.get(data.format)

    def __len__(self) -> int:
        return len(self._data)

    def rows(self, units: Indices) -> Indices:
        return np.ones(len(units), dtype=np.int64)

    def items(self, units: Indices) -> Items:
        if self._width is not None:
            indices = (units[:, None] * self._width + np.arange(self._width)).ravel()
            return Items(indices, np.full(len(units), self._width, dtype=np.int64))
        starts = self._data.row_starts[units]
        return _ranges(starts, self._data.row_starts[units + 1] - starts)

    def lengths(self, units: Indices) -> tuple[Indices, Indices]:
        items = self.items(units)
        lengths = item_lengths(self._data, items.indices)
        firsts = np.cumsum(items.counts) - items.counts
        asking = lengths[firsts].copy()
        lengths[firsts] = 0
        return asking, np.maximum.reduceat(lengths, firsts)

    def contrasts(self, units: Indices) -> bool:
        return len(units) > 1

    def completing(self, units: Indices, candidates: Indices) -> npt.NDArray[np.bool_]:
        return np.full(len(candidates), len(units) > 0)


class GroupUnits:
    """Some rows of one label are a unit: at most m, and no row in two units.

    A label's rows are shuffled and cut into as few groups as hold them, of equal size but for one row. So none
    is left alone, unless its label has but one row, or m is 2 and their number odd.
    """

    def __init__(
        self, data: Prepared, rows: npt.NDArray[np.integer[Any]], m: int, rng: np.random.Generator, *, by_length: bool
    ) -> None:
        """rows: those to use, in any order."""
        self.largest = m
        self._data = data
        order = rng.permutation(rows)
        labels = label_numbers(data)[order]
        by_label = np.argsort(labels, kind="stable")
        self._members, labels = order[by_label], labels[by_label]
        self._labels, counts = np.unique(labels, return_counts=True)
        if by_length:
            place = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
            lengths = item_lengths(data, self._members)
            self._members = self._members[np.lexsort((lengths, place // (_GROUPS_SORTED_TOGETHER * m), labels))]
        self._groups = -(-counts // m)  # of each label
        self._labels = np.repeat(self._labels, self._groups)
        sizes = np.repeat(counts // self._groups, self._groups)
        sizes += self.number_in_label() < np.repeat(counts % self._groups, self._groups)
        self._starts = np.concatenate([[0], np.cumsum(sizes)])

    def __len__(self) -> int:
        return len(self._labels)

    def number_in_label(self) -> Indices:
        """Each unit's number among those of its label, from 0; (units,)."""
        return np.arange(len(self._labels)) - np.repeat(np.cumsum(self._groups) - self._groups, self._groups)

    def spread(self, rng: np.random.Generator) -> Indices:
        """All units, those of each label spread evenly: one falls into each of equally long stretches, anywhere."""
        places = (self.number_in_label() + rng.random(len(self))) / np.repeat(self._groups, self._groups)
        order: Indices = np.argsort(places, kind="stable")
        return order

    def rows(self, units: Indices) -> Indices:
        counts: Indices = self._starts[units + 1] - self._starts[units]
        return counts

    def items(self, units: Indices) -> Items:
        places = _ranges(self._starts[units], self.rows(units))
        # A row of a labelled file has one item, so both have one number.
        return Items(self._members[places.indices].astype(np.int64), places.counts)

    def lengths(self, units: Indices) -> tuple[Indices, Indices]:
        items = self.items(units)
        firsts = np.cumsum(items.counts) - items.counts
        longest = np.maximum.reduceat(item_lengths(self._data, items.indices), firsts)
        return longest, np.zeros_like(longest)

    def contrasts(self, units: Indices) -> bool:
        return 1 < len(np.unique(self._labels[units])) < int(self.rows(units).sum())

    def completing(self, units: Indices, candidates: Indices) -> npt.NDArray[np.bool_]:
        present = np.unique(self._labels[units])
        # Mostly one candidate, and few labels: a table is ten times as fast as np.isin.
        known: npt.NDArray[np.bool_] = (self._labels[candidates][:, None] == present).any(axis=1)
        if len(present) == 1:
            alone = int(self.rows(units).sum()) == 1
            return ~known & (self.rows(candidates) > 1) if alone else ~known
        repeats = known | (self.rows(candidates) > 1)
        return repeats if len(present) == self.rows(units).sum() else np.full(len(candidates), len(present) > 1)


def label_numbers(data: Prepared) -> npt.NDArray[np.int32]:
    """The label of each row, (R,). Raises ValueError for a dataset without labels."""
    if data.labels is None:
        raise ValueError("This dataset has no labels.")
    return data.labels


def item_lengths(data: Prepared, items: Indices) -> Indices:
    """Tokens of each item, (n,); 1 for vectors, which are all equally long."""
    if data.starts is None:
        return np.ones(len(items), dtype=np.int64)
    return data.starts[items + 1] - data.starts[items]


def _ranges(starts: Indices, counts: Indices) -> Items:
    """starts[i], starts[i] + 1, … counts[i] of them, for each i."""
    ends = np.cumsum(counts)
    return Items(np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - counts), counts), counts)
