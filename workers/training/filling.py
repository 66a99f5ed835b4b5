"""Filling batches from a queue of units, so that no content stands in two units of one batch.

A unit that would bring a content in again waits for a later batch of the epoch. Content ids are compared a
window of units at a time, by sorting; only units that do share a content are looked at one by one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from workers.data.prepared import Prepared
from workers.training import length_cells
from workers.training.units import Indices, Items, Units

#: When what is left of an epoch shares its contents, each further batch would be short and look at all of it.
_SHORT_BATCHES_PER_EPOCH = 16
#: Units looked at together while hardly any fits.
_LARGEST_WINDOW = 8192
#: Batches whose units are sorted by length together: enough for texts of every topic, and for padding far below 10 %
#: where lengths vary as in real data. Of pairs of which one side says nothing of the other, that takes 200.
_BATCHES_SORTED_TOGETHER = 1024


def planned(data: Prepared, units: Units, order: npt.NDArray[np.integer[Any]], full: int) -> Iterator[Indices]:
    """The batches of an epoch, as the units in them. A batch is full with `full` rows or more.

    Takes over `order`, the units in the order in which they are wanted.
    """
    queue = _Queue(order)
    short = 0
    while short < _SHORT_BATCHES_PER_EPOCH:
        filling = _Filling(data, units, full)
        filling.fill_from(queue, and_what_waits=True)
        if not len(filling.units):
            return
        short += not filling.is_full
        if filling.is_full or units.contrasts(filling.units):
            yield filling.units


def planned_by_length(
    data: Prepared, units: Units, order: npt.NDArray[np.integer[Any]], full: int, rng: np.random.Generator
) -> Iterator[Indices]:
    """The same with units of like length in a batch, for encoders that pad.

    Long stretches of the shuffled order are sorted by length, cut into batches, and those shuffled: what is in a
    batch has its length in common and nothing else. Units that wait come at the end of the epoch.
    """
    stretch = max(1, _BATCHES_SORTED_TOGETHER * full // units.largest)
    late = [np.zeros(0, dtype=np.int64)]
    rest = late[0]
    for start in range(0, len(order), stretch):
        queue = _Queue(_by_length(units, np.concatenate([rest, order[start : start + stretch]]), full))
        batches: list[Indices] = []
        while (filling := _Filling(data, units, full)).fill_from(queue, and_what_waits=False):
            batches.append(filling.units)
        rest = filling.units
        late.append(queue.waiting())
        yield from (batches[index] for index in rng.permutation(len(batches)))
    yield from planned(data, units, _by_length(units, np.concatenate([*late, rest]), full), full)


def _by_length(units: Units, order: Indices, full: int) -> Indices:
    """Units in such an order that neighbours have like lengths, both of what asks and of what answers."""
    if not len(order):
        return order
    ordered: Indices = order[length_cells.in_order(*units.lengths(order), max(1, full // units.largest))]
    return ordered


class _Queue:
    """Units in order. Those that wait are put where units have been taken: it never needs more than its one array."""

    def __init__(self, order: npt.NDArray[np.integer[Any]]) -> None:
        self._order = order
        self._next = 0
        self._end = len(order)
        self._waiting = 0  # order[:waiting] wait

    def ahead(self, n: int) -> Indices:
        """The next n, or what is left."""
        return self._order[self._next : min(self._next + n, self._end)].astype(np.int64)

    def pass_by(self, n: int, waiting: Indices) -> None:
        """Go on behind the next n, of which `waiting` wait."""
        self._next += n
        self._order[self._waiting : self._waiting + len(waiting)] = waiting
        self._waiting += len(waiting)

    def turn_to_waiting(self) -> None:
        """Begin again with those that wait, once the others are through."""
        self._next, self._end, self._waiting = 0, self._waiting, 0

    def waiting(self) -> Indices:
        return self._order[: self._waiting].astype(np.int64)


class _Filling:
    """A batch on its way."""

    def __init__(self, data: Prepared, units: Units, full: int) -> None:
        self._data = data
        self._all = units
        self._full = full
        self._rows = 0
        self._contents = np.zeros(0, dtype=np.int64)
        self.units = np.zeros(0, dtype=np.int64)

    @property
    def is_full(self) -> bool:
        return self._rows >= self._full

    def fill_from(self, queue: _Queue, *, and_what_waits: bool) -> bool:
        """Take units until the batch is full, each one looked at once; returns whether it is."""
        tries = 0
        while not self.is_full:
            missing = -(-(self._full - self._rows) // self._all.largest)
            window = queue.ahead(min(missing << tries, max(missing, _LARGEST_WINDOW)))
            if len(window):
                self._take_from(window, queue)
                tries = min(tries + 1, 16)
            elif and_what_waits:
                queue.turn_to_waiting()
                and_what_waits = False
            else:
                return False
        return True

    def _take_from(self, window: Indices, queue: _Queue) -> None:
        items = self._all.items(window)
        contents = self._data.contents[items.indices]
        fits = _without_repeats(self._contents, contents, items)
        sizes = self._all.rows(window)
        rows = np.cumsum(np.where(fits, sizes, 0))
        passed = len(window)
        filling = int(np.searchsorted(rows, self._full - self._rows))
        if filling < passed:
            before = np.concatenate([self.units, window[:filling][fits[:filling]]])
            # The unit that fills the batch up must leave it with a positive and a negative.
            completing = fits[filling:] & self._all.completing(before, window[filling:])
            fits[filling:] = False
            if completing.any():
                passed = filling + int(completing.argmax()) + 1
                fits[passed - 1] = True
        taken = fits[:passed]
        queue.pass_by(passed, window[:passed][~taken])
        self.units = np.concatenate([self.units, window[:passed][taken]])
        self._contents = np.concatenate([self._contents, contents[np.repeat(fits, items.counts)]])
        self._rows += int(sizes[:passed][taken].sum())


def _without_repeats(held: Indices, contents: Indices, items: Items) -> npt.NDArray[np.bool_]:
    """Which units, taken in order, bring no content that is held or was brought by one taken before; (k,)."""
    fits = np.ones(len(items.counts), dtype=np.bool_)
    both = np.concatenate([held, contents])
    ordered = np.sort(both)
    if not (ordered[1:] == ordered[:-1]).any():
        return fits
    _, inverse, occurrences = np.unique(both, return_inverse=True, return_counts=True)
    owners = np.repeat(np.arange(len(items.counts)), items.counts)
    contested = owners[occurrences[inverse[len(held) :]] > 1]
    present = set(held.tolist())
    ends = np.cumsum(items.counts)
    for owner in np.unique(contested).tolist():
        own = contents[ends[owner] - items.counts[owner] : ends[owner]].tolist()
        if present.isdisjoint(own):
            present.update(own)
        else:
            fits[owner] = False
    return fits
