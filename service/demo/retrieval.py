"""How well queries find their answers: recall@k, mean reciprocal rank, and how sure a difference is.

Query i has one right answer, document i. Documents are ranked by cosine similarity to the query. With g
documents scoring higher than the right answer and t others scoring the same, the right answer is as likely
in each of the places g + 1 … g + t + 1, for a tie has no order; every metric here is the mean over those
places, so that a model which gives all texts one vector gains nothing by it.

    recall@k          share of queries whose right answer is among the first k
    reciprocal rank   1 / place of the right answer; its mean over the queries is MRR

Sources: Voorhees, "The TREC-8 Question Answering Track Report", 1999 (MRR); McSherry and Najork, "Computing
Information Retrieval Performance Measures Efficiently in the Presence of Tied Scores", ECIR 2008 (ties).

Letters of shapes: n queries and their n documents, d dimensions, b resamples.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Integers = NDArray[np.int64]

#: Cosines closer than this are the same: a float32 dot product is no more exact.
TIE = 1e-6
RESAMPLES = 2000


class Places(NamedTuple):
    """Where each query's right answer stands: documents above it and others beside it, both (n,)."""

    above: Integers
    beside: Integers

    def expected(self) -> Floats:
        """The mean place, from 1: (n,)."""
        return 1 + self.above + self.beside / 2

    def recall(self, k: int) -> Floats:
        """The chance that the right answer is among the first k: (n,) in [0, 1]."""
        chance: Floats = np.clip((k - self.above) / (self.beside + 1), 0, 1)
        return chance

    def reciprocal(self) -> Floats:
        """The mean of 1 / place over the places of a tie: (n,) in (0, 1]."""
        harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, 2 + np.max(self.above + self.beside)))])
        mean: Floats = (harmonic[self.above + self.beside + 1] - harmonic[self.above]) / (self.beside + 1)
        return mean


class Difference(NamedTuple):
    """What a metric was, what it became, and the 95 % interval of the difference."""

    name: str
    before: float
    after: float
    low: float
    high: float

    @property
    def gain(self) -> float:
        """After less before."""
        return self.after - self.before

    @property
    def is_better(self) -> bool:
        """Whether all of the interval lies above zero."""
        return self.gain > 0 and self.low > 0


@dataclass(frozen=True)
class Neighbour:
    """A document near a query."""

    index: int
    score: float


def places(queries: Floats, documents: Floats) -> Places:
    """Rank document i for query i. Both (n, d), rows of unit length; memory n²."""
    scores = queries @ documents.T
    margin = scores - np.diagonal(scores)[:, None]
    above = np.count_nonzero(margin > TIE, axis=1)
    beside = np.count_nonzero(np.abs(margin) <= TIE, axis=1) - 1  # without the right answer itself
    return Places(above, beside)


def compare(before: Places, after: Places, *, seed: int = 0) -> list[Difference]:
    """Recall@1, recall@10 and MRR of the same queries before and after."""
    metrics = {
        "recall@1": (before.recall(1), after.recall(1)),
        "recall@10": (before.recall(10), after.recall(10)),
        "MRR": (before.reciprocal(), after.reciprocal()),
    }
    return [difference(name, *values, seed=seed) for name, values in metrics.items()]


def difference(name: str, before: Floats, after: Floats, *, seed: int = 0) -> Difference:
    """The means of a metric, (n,) each time, and how far the choice of queries moves their difference.

    Paired percentile bootstrap: draw n queries with replacement, b times, each with both of its values, and
    take the 2.5th and 97.5th percentile of the mean differences (Efron and Tibshirani, "An Introduction to
    the Bootstrap", 1993, §13.3). It treats queries as independent, which those of one module are not quite.
    """
    n = len(before)
    drawn = np.random.default_rng(seed).integers(0, n, size=(RESAMPLES, n))  # (b, n)
    means = (after - before)[drawn].mean(axis=1)  # (b,)
    low, high = np.percentile(means, [2.5, 97.5])
    return Difference(name, float(before.mean()), float(after.mean()), float(low), float(high))


def nearest(query: Floats, documents: Floats, count: int) -> list[Neighbour]:
    """The documents (n, d) most alike a query (d,), best first; equals in the documents' order."""
    scores = documents @ query
    order = np.argsort(-scores, kind="stable")[:count]
    return [Neighbour(int(index), float(scores[index])) for index in order]
