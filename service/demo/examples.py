"""Queries worth looking at: what the model learned, and what it unlearned."""

from dataclasses import dataclass

import numpy as np

from service.demo.docstrings import Pair
from service.demo.retrieval import Floats, Neighbour, Places, nearest

EXAMPLES = 5
NEIGHBOURS = 3


@dataclass(frozen=True)
class View:
    """What one model finds for a query: the place of the right answer, and the nearest documents."""

    place: float
    neighbours: list[Neighbour]


@dataclass(frozen=True)
class Example:
    """A query under both models. `answer` is the index of the document that is right."""

    pair: Pair
    answer: int
    before: View
    after: View

    @property
    def change(self) -> str:
        """What became of its place."""
        if self.after.place == self.before.place:
            return "stayed"
        return "gained" if self.after.place < self.before.place else "lost"


@dataclass(frozen=True)
class Embedded:
    """The held-out texts under one model, and where the right answers stand: (n, d), (n, d), (n,)."""

    queries: Floats
    documents: Floats
    places: Places

    def view(self, query: int) -> View:
        """What this model finds for a query."""
        neighbours = nearest(self.queries[query], self.documents, NEIGHBOURS)
        return View(float(self.places.expected()[query]), neighbours)


def choose(pairs: list[Pair], before: Places, after: Places) -> list[int]:
    """The queries that gained most in reciprocal rank, one of each module, and last the one that lost most.

    Without a loser all are gainers. The same places give the same choice.
    """
    gains = after.reciprocal() - before.reciprocal()
    order = [int(query) for query in np.argsort(-gains, kind="stable")]
    losers = [query for query in order[-1:] if gains[query] < 0]
    winners = _of_different_modules(pairs, [query for query in order if query not in losers])
    return winners[: EXAMPLES - len(losers)] + losers


def _of_different_modules(pairs: list[Pair], order: list[int]) -> list[int]:
    """The same queries, the first of each module before all others."""
    firsts: dict[str, int] = {}
    for query in order:
        firsts.setdefault(pairs[query].anchor.partition(" ")[0], query)
    chosen = list(firsts.values())
    return chosen + [query for query in order if query not in set(chosen)]


def show(pairs: list[Pair], before: Embedded, after: Embedded) -> list[Example]:
    """The chosen queries under both models."""
    return [
        Example(pairs[query], query, before.view(query), after.view(query))
        for query in choose(pairs, before.places, after.places)
    ]
