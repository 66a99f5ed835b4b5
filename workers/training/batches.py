"""Batches: which rows meet in a step, decided by a seed and nothing else.

A batch never holds a text twice under different rows: as a negative of itself it would be pushed away from
where it is. A row that would bring such a text waits for a later batch of the same epoch.

Pairs: a row is an anchor and its positive; all other rows of the batch are its negatives.

Labels: each label's texts are shuffled and cut into groups of m (at most ROWS_PER_LABEL, at most half of a
batch), and the groups of all labels are spread evenly over the epoch, so that a batch has about the shares of
the labels in the file. A group that is left with one text borrows a second from its label; a label with one
text stands alone, as a negative of the others.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from workers.training.datasets import Dataset, LabelDataset, PairDataset

#: m, the texts of one label that are drawn together: three positives for each anchor, and still many labels
#: in a batch.
ROWS_PER_LABEL = 4
#: Two groups of two: the smallest batch in which labelled texts have positives and negatives.
MIN_LABEL_BATCH = 4
#: When what is left of an epoch shares its texts, each further batch would be short and look at all of it.
_SHORT_BATCHES_PER_EPOCH = 16


class NoBatchError(ValueError):
    """The rows and the batch size make no batch; the message says which of the two to change."""


@dataclass(frozen=True, eq=False)
class Batch:
    """What one step encodes and contrasts."""

    texts: npt.NDArray[np.int64]  # (N,) indices into the dataset's texts
    labels: npt.NDArray[np.int64]  # (N,) equal where texts are alike
    asks: npt.NDArray[np.bool_]  # (N,) anchors of pairs, and labelled texts; false for what answers an anchor
    rows: int  # of the dataset: N / 2 for pairs, N for labelled texts


class Batches:
    """All batches of a run, the same for the same seed, reshuffled in each epoch.

    A batch has at most `batch_size` rows, and only an epoch's last ones and those of labelled texts (by less
    than m) have fewer. What would have no positive or no negative, such as the one row left over of an odd
    number, is left out for that epoch; every other row occurs once (borrowed ones twice).

    Raises NoBatchError if the batch size is below 2 (MIN_LABEL_BATCH for labels) or no batch can be formed.
    """

    def __init__(
        self, dataset: Dataset, *, batch_size: int, seed: int, epochs: int = 1, max_steps: int | None = None
    ) -> None:
        smallest = 2 if isinstance(dataset, PairDataset) else MIN_LABEL_BATCH
        if batch_size < smallest:
            raise NoBatchError(f"batch_size must be at least {smallest} for this file, not {batch_size}.")
        self._dataset = dataset
        self._batch_size = batch_size
        self._seed = seed
        self._epochs = epochs
        # Rows that wait make the number differ from epoch to epoch. Planning them all gives it exactly, for
        # a few µs a row and epoch.
        self.total_steps = sum(1 for _ in islice(self._all(), max_steps))
        if self.total_steps == 0:
            raise NoBatchError("No batch can be formed: all rows share their texts or their label.")

    def starting_at(self, step: int) -> Iterator[Batch]:
        """The batches of steps `step`, `step` + 1, … up to total_steps − 1."""
        return islice(self._all(), step, self.total_steps)

    def _all(self) -> Iterator[Batch]:
        for epoch in range(self._epochs):
            rng = np.random.default_rng([self._seed, epoch])
            yield from _epoch(self._dataset, self._batch_size, rng)


class _Unit(NamedTuple):
    """Texts that enter a batch together and are alike."""

    texts: tuple[int, ...]
    asking: int  # how many of them ask, the first ones
    label: int
    rows: int


def _epoch(dataset: Dataset, batch_size: int, rng: np.random.Generator) -> Iterator[Batch]:
    if isinstance(dataset, PairDataset):
        return _batches(_pair_units(dataset, rng), full=batch_size)
    m = min(ROWS_PER_LABEL, batch_size // 2)
    # Full as soon as another group of m might not fit.
    return _batches(_label_units(dataset, m, rng), full=batch_size - m + 1)


def _batches(fresh: Iterator[_Unit], full: int) -> Iterator[Batch]:
    waiting: deque[_Unit] = deque()
    short = 0
    while short < _SHORT_BATCHES_PER_EPOCH and (units := _fill(fresh, waiting, full)):
        short += _rows(units) < full
        if _contrasts(units):
            yield _batch(units)


def _fill(fresh: Iterator[_Unit], waiting: deque[_Unit], full: int) -> list[_Unit]:
    """Take units until `full` rows are reached. Those that don't fit this batch (go on to) wait:

    they share a text with one taken, or would fill it up without a positive or a negative in it.
    """
    taken: list[_Unit] = []
    held: set[int] = set()
    rows = 0
    for unit in chain(fresh, _each_once(waiting)):
        fills = rows + unit.rows >= full
        if not held.isdisjoint(unit.texts) or (fills and not _contrasts([*taken, unit])):
            waiting.append(unit)
            continue
        taken.append(unit)
        held.update(unit.texts)
        rows += unit.rows
        if fills:
            break
    return taken


def _each_once(waiting: deque[_Unit]) -> Iterator[_Unit]:
    """Those that wait now; what is appended meanwhile is not seen."""
    for _ in range(len(waiting)):
        yield waiting.popleft()


def _batch(units: list[_Unit]) -> Batch:
    sizes = [len(unit.texts) for unit in units]
    return Batch(
        texts=np.fromiter(chain.from_iterable(unit.texts for unit in units), dtype=np.int64, count=sum(sizes)),
        labels=np.repeat(np.array([unit.label for unit in units], dtype=np.int64), sizes),
        asks=np.concatenate([np.arange(size) < unit.asking for unit, size in zip(units, sizes, strict=True)]),
        rows=_rows(units),
    )


def _contrasts(units: list[_Unit]) -> bool:
    """Whether some text has a positive and some text a negative."""
    return 1 < len({unit.label for unit in units}) < sum(len(unit.texts) for unit in units)


def _rows(units: list[_Unit]) -> int:
    return sum(unit.rows for unit in units)


def _pair_units(dataset: PairDataset, rng: np.random.Generator) -> Iterator[_Unit]:
    for row in rng.permutation(len(dataset)).tolist():
        yield _Unit((dataset.anchors[row], dataset.positives[row]), asking=1, label=row, rows=1)


def _label_units(dataset: LabelDataset, m: int, rng: np.random.Generator) -> Iterator[_Unit]:
    units: list[_Unit] = []
    positions: list[float] = []
    for label, items in enumerate(_items_by_label(dataset)):
        groups = _groups(rng.permutation(items).tolist(), m)
        units += (_Unit(tuple(group), len(group), label, len(group)) for group in groups)
        # One group falls into each of equally long stretches of the epoch, anywhere in it.
        positions += ((np.arange(len(groups)) + rng.random(len(groups))) / len(groups)).tolist()
    for index in np.argsort(positions, kind="stable").tolist():
        yield units[index]


def _items_by_label(dataset: LabelDataset) -> list[array[int]]:
    by_label = [array("i") for _ in dataset.label_names]
    for item, label in zip(dataset.items, dataset.labels, strict=True):
        by_label[label].append(item)
    return by_label


def _groups(items: list[int], m: int) -> list[list[int]]:
    groups = [items[start : start + m] for start in range(0, len(items), m)]
    if len(groups) > 1 and len(groups[-1]) == 1:
        groups[-1].append(items[0])
    return groups
