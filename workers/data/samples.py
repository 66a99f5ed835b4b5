"""A random sample of a stream of unknown length, the same for the same seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

import numpy as np

Element = TypeVar("Element")


class Reservoir(Generic[Element]):
    """Keeps `size` elements of those it was shown, each set of them as likely as another (Vitter 1985, algorithm R)."""

    def __init__(self, size: int, *, seed: int = 0) -> None:
        self.kept: list[Element] = []
        self.seen = 0
        self._size = size
        self._rng = np.random.default_rng(seed)

    def add(self, elements: Sequence[Element]) -> list[int]:
        """Show it elements. Returns the places in `kept` that have changed, in which one may stand twice."""
        filling = elements[: max(0, self._size - len(self.kept))]
        changed = [*range(len(self.kept), len(self.kept) + len(filling))]
        self.kept.extend(filling)
        self.seen += len(filling)
        rest = range(len(filling), len(elements))
        # Element number n (from 1) takes the place drawn from 0 … n − 1, if there is such a place.
        places = self._rng.integers(0, self.seen + 1 + np.arange(len(rest)))
        for offset in np.flatnonzero(places < self._size).tolist():
            place = int(places[offset])
            self.kept[place] = elements[rest[offset]]
            changed.append(place)
        self.seen += len(rest)
        return changed
