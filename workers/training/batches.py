"""Batches: which rows meet in a step, decided by a seed and nothing else.

A batch never holds one content under different rows: as a negative of itself it would be pushed away from
where it is. A row that would bring such a content waits for a later batch of the same epoch.

Pairs, triplets, views: the items of a row are alike, but for the hard negatives of a triplet, which nothing is
alike; all other rows of the batch are its negatives.

Texts: each text stands in the batch twice, for two views of it that training makes.

Labels: each label's texts are shuffled and cut into groups of m (at most ROWS_PER_LABEL, at most half of a
batch), and the groups of all labels are spread evenly over the epoch, so that a batch has about the shares of
the labels in the file. No text occurs twice in an epoch: a label with fewer than m comes with all it has, and
one with a single text stands alone, as a negative of the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from workers.data.prepared import Prepared
from workers.training.filling import planned, planned_by_length
from workers.training.units import GroupUnits, Indices, RowUnits, Units, label_numbers, numbered

#: m, the texts of one label that are drawn together: three positives for each anchor, and still many labels
#: in a batch.
ROWS_PER_LABEL = 4
#: Two groups of two: the smallest batch in which labelled texts have positives and negatives.
MIN_LABEL_BATCH = 4

#: Where a sampler goes on: what it means is the sampler's own business.
Position = tuple[int, ...]


class NoBatchError(ValueError):
    """The rows, or they and the batch size, make no batch; the message says what to change."""


@dataclass(frozen=True, eq=False)
class Batch:
    """What one step encodes and contrasts."""

    items: npt.NDArray[np.int64]  # (N,) indices into the dataset's items
    contents: npt.NDArray[np.int64]  # (N,) equal where the items are the same text or vector
    labels: npt.NDArray[np.int64]  # (N,) equal where items are alike
    asks: npt.NDArray[np.bool_]  # (N,) the first item of a row, and labelled items; false for what answers it
    rows: int  # of the dataset
    epoch: int = 0
    source: int = 0  # which dataset, where several are mixed
    mined: int = 0  # how many of the items, at their end, are negatives that no row brought
    after: Position = (0, 0)  # where to go on behind this batch


class Sampler(Protocol):
    """All batches of a run, the same for the same seed."""

    start: Position
    total_steps: int
    notices: list[str]  # what is worth knowing of the rows, in sentences

    def starting_at(self, position: Position) -> Iterator[Batch]:
        """The batches from a position on, without an end."""


class Batches:
    """The batches of one dataset, reshuffled in each epoch.

    A batch has at most `batch_size` rows, and only an epoch's last ones and those of labelled texts (by less
    than m) have fewer. What would have no positive or no negative, such as the one row left over of an odd
    number, is left out for that epoch; every other row occurs once. Rows that repeat a text and its label count
    as one.

    total_steps: `epochs` times the batches of the first epoch, at most max_steps. Rows that wait can make
    another epoch longer or shorter by a few; then the last one ends early, or a further one begins.

    bucket_by_length: for encoders that pad. What asks and what answers is then each of like length in a batch.

    Memory: 4 bytes a row while an epoch lasts, with bucket_by_length 8; for labels 9, and 4 more where rows repeat.
    When an epoch of labels begins, or a stretch is sorted by length, some 25 a row of it more for a moment.
    To go on from a position costs what drawing the batches of its epoch before it does.

    Raises NoBatchError if the batch size is below 2 (MIN_LABEL_BATCH for labels) or no batch can be formed, and for
    scored pairs, which may be unlike.
    """

    start: Position = (0, 0)  # epoch, and which of its batches

    def __init__(
        self,
        data: Prepared,
        *,
        batch_size: int,
        seed: int,
        epochs: int = 1,
        max_steps: int | None = None,
        bucket_by_length: bool = False,
    ) -> None:
        if data.scores is not None:
            raise NoBatchError("Scored pairs are evaluated on and never trained on. Name them as `validation_file`.")
        labelled = data.labels is not None
        smallest = MIN_LABEL_BATCH if labelled else 2
        if batch_size < smallest:
            raise NoBatchError(f"batch_size must be at least {smallest} for this file, not {batch_size}.")
        self._data = data
        self._m = min(ROWS_PER_LABEL, batch_size // 2) if labelled else 1
        # Full as soon as another group of m might not fit.
        self._full = batch_size - self._m + 1
        self._seed = seed
        self._bucket_by_length = bucket_by_length
        self._kept = _without_repeated_rows(data) if labelled else data.chosen
        self.notices = self._notices()
        steps = epochs * sum(1 for _ in islice(self._planned(0), max_steps))
        self.total_steps = steps if max_steps is None else min(steps, max_steps)
        if self.total_steps == 0:
            raise NoBatchError("No batch can be formed: all rows share their texts or their label.")

    def starting_at(self, position: Position) -> Iterator[Batch]:
        """The batches from a position on, without an end."""
        first_epoch, skipped = position
        for epoch in count(first_epoch):
            yield from self.epoch(epoch, skipped=skipped)
            skipped = 0

    def epoch(self, epoch: int, *, skipped: int = 0) -> Iterator[Batch]:
        """The batches of one epoch but the first `skipped`."""
        for number, batch in enumerate(self._planned(epoch)):
            if number >= skipped:
                yield self._batch(*batch, epoch, number)

    def _planned(self, epoch: int) -> Iterator[tuple[Units, Indices]]:
        rng = np.random.default_rng([self._seed, epoch])
        units, order = self._units(rng)
        if self._bucket_by_length:
            batches = planned_by_length(self._data, units, order, self._full, rng)
        else:
            batches = planned(self._data, units, order, self._full)
        return ((units, batch) for batch in batches)

    def _units(self, rng: np.random.Generator) -> tuple[Units, npt.NDArray[np.integer[Any]]]:
        """The units of an epoch, and the order in which they are wanted."""
        if self._data.labels is not None:
            rows = numbered(len(self._data)) if self._kept is None else self._kept
            groups = GroupUnits(self._data, rows, self._m, rng, by_length=self._bucket_by_length)
            return groups, groups.spread(rng)
        order = numbered(len(self._data)) if self._kept is None else self._kept.copy()
        rng.shuffle(order)
        return RowUnits(self._data), order

    def _batch(self, units: Units, chosen: Indices, epoch: int, number: int) -> Batch:
        items, counts = units.items(chosen)
        if self._data.labels is None and self._data.format in ("texts", "vectors"):
            items, counts = np.repeat(items, 2), counts * 2
        contents = self._data.contents[items]
        if self._data.labels is not None:
            labels = self._data.labels[items].astype(np.int64)
            asks = kept = np.ones(len(items), dtype=np.bool_)
        else:
            labels = np.repeat(chosen, counts)
            place = np.arange(len(items)) - np.repeat(np.cumsum(counts) - counts, counts)
            asks = place == 0
            kept = np.ones(len(items), dtype=np.bool_)
            if self._data.format == "triplets":
                # Below 0: no row's label, so a positive of nothing.
                labels = np.where(place > 1, -1 - items, labels)
                # A row's negative that is its own positive, or named twice, would count as what it isn't.
                kept = (place <= 1) | _is_first(contents)
        return Batch(
            items=items[kept],
            contents=contents[kept],
            labels=labels[kept],
            asks=asks[kept],
            rows=int(units.rows(chosen).sum()),
            epoch=epoch,
            after=(epoch, number + 1),
        )

    def _notices(self) -> list[str]:
        labels = self._data.labels
        if labels is None:
            return []
        kept = len(labels) if self._kept is None else len(self._kept)
        counts = np.bincount(labels if self._kept is None else labels[self._kept])
        counts = counts[counts > 0]
        notices = []
        if small := int((counts < self._m).sum()):
            notices.append(
                f"Labels with fewer than {self._m} texts: {small} of {len(counts)}. "
                "They come with as many as they have, and a single text only as a negative"
            )
        if repeated := self._data.row_count - kept:
            notices.append(f"Rows that repeat a text and its label, and are left out: {repeated}")
        return notices


def _is_first(contents: Indices) -> npt.NDArray[np.bool_]:
    """Whether no content before is the same, (N,)."""
    first = np.zeros(len(contents), dtype=np.bool_)
    first[np.unique(contents, return_index=True)[1]] = True
    return first


def _without_repeated_rows(data: Prepared) -> npt.NDArray[np.integer[Any]] | None:
    """The rows of a labelled file that are used, each content once for a label; None for all of the file."""
    if data.distinct == len(data):
        return data.chosen
    every = label_numbers(data)
    # A row of a labelled file has one item, so both have one number.
    used = data.rows
    order = used[np.lexsort((data.contents[used], every[used]))]
    contents, labels = data.contents[order], every[order]
    first = np.ones(len(order), dtype=np.bool_)
    first[1:] = (contents[1:] != contents[:-1]) | (labels[1:] != labels[:-1])
    return data.chosen if first.all() else np.sort(numbered(len(data))[order[first]])
