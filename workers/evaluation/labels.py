"""Whether texts of one label lie together: k nearest neighbours, and clusters against labels.

    accuracy   share of texts whose label is the most frequent among their K nearest neighbours, themselves left out
    NMI        normalised mutual information of labels and of as many k-means clusters as there are labels:
               I(labels; clusters) over the mean of their entropies, from 0 to 1

Lloyd's algorithm begins at centres drawn by k-means++, in several starts of which the tightest counts. It is written
here in place of scikit-learn, which with SciPy would bring 165 MB for it; the tests compare both.

Sources: Arthur and Vassilvitskii, "k-means++: The Advantages of Careful Seeding", 2007; Strehl and Ghosh, "Cluster
Ensembles", 2002 (NMI; the arithmetic mean is scikit-learn's choice).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from workers.evaluation.questions import Questions

Floats = npt.NDArray[np.floating]
Indices = npt.NDArray[np.int64]

#: Neighbours that vote.
K = 5
_STARTS = 4
_MOST_ROUNDS = 50
#: Cosines in memory at a time.
_BLOCK = 4 * 1024 * 1024


def neighbours_agree(documents: Floats, questions: Questions) -> Floats:
    """1 for each query whose neighbours' most frequent label is its own, else 0; (n,).

    documents (m, d). Of labels with as many votes, the one whose voters are nearer wins.
    """
    assert questions.labels is not None  # noqa: S101 (asked of labelled texts only)
    _, labels = np.unique(questions.labels, return_inverse=True)
    k = min(K, len(documents) - 1)
    agree = np.zeros(len(questions.queries))
    step = max(1, _BLOCK // len(documents))
    for start in range(0, len(agree), step):
        itself = questions.itself[start : start + step]
        scores = documents[itself] @ documents.T
        scores[np.arange(len(itself)), itself] = -np.inf
        nearest = np.argpartition(-scores, k - 1, axis=1)[:, :k]
        votes = np.zeros((len(itself), labels.max() + 1))
        weights = 1 + np.take_along_axis(scores, nearest, axis=1) / (4 * K)
        np.add.at(votes, (np.arange(len(itself))[:, None], labels[nearest]), weights)
        agree[start : start + step] = votes.argmax(axis=1) == labels[itself]
    return agree


def clusters(documents: Floats, count: int, *, seed: int) -> Indices:
    """The cluster of each document, (m,), of `count`."""
    rng = np.random.default_rng(seed)
    tries = [_lloyd(documents, _first_centres(documents, count, rng)) for _ in range(_STARTS)]
    return min(tries, key=lambda each: each[0])[1]


def mutual_information(labels: Indices, assigned: Indices) -> float:
    """NMI of two assignments of the same texts, (m,) each; 1 where both are one and the same class."""
    table = np.zeros((labels.max() + 1, assigned.max() + 1))
    np.add.at(table, (labels, assigned), 1 / len(labels))
    of_labels, of_clusters = table.sum(axis=1), table.sum(axis=0)
    entropies = _entropy(of_labels) + _entropy(of_clusters)
    if entropies == 0:
        return 1.0
    together = table > 0
    expected = np.outer(of_labels, of_clusters)[together]
    shared = float((table[together] * np.log(table[together] / expected)).sum())
    return max(0.0, 2 * shared / entropies)


def _entropy(shares: Floats) -> float:
    some = shares[shares > 0]
    return float(-(some * np.log(some)).sum())


def _first_centres(documents: Floats, count: int, rng: np.random.Generator) -> Floats:
    centres = [documents[rng.integers(len(documents))]]
    distances = _distances(documents, centres[0][None])[:, 0]
    while len(centres) < count and distances.sum() > 0:
        centres.append(documents[rng.choice(len(documents), p=distances / distances.sum())])
        distances = np.minimum(distances, _distances(documents, centres[-1][None])[:, 0])
    return np.array(centres)


def _lloyd(documents: Floats, centres: Floats) -> tuple[float, Indices]:
    """The sum of squared distances to the centres, and the nearest centre of each document."""
    assigned = np.full(len(documents), -1)
    for _ in range(_MOST_ROUNDS):
        distances = _distances(documents, centres)
        nearest = distances.argmin(axis=1)
        if np.array_equal(nearest, assigned):
            break
        assigned = nearest
        sums = np.zeros_like(centres)
        np.add.at(sums, assigned, documents)
        counts = np.bincount(assigned, minlength=len(centres))[:, None]
        centres = np.where(counts > 0, sums / np.maximum(counts, 1), centres)
    return float(np.take_along_axis(_distances(documents, centres), assigned[:, None], axis=1).sum()), assigned


def _distances(documents: Floats, centres: Floats) -> npt.NDArray[np.float64]:
    """Squared, (m, centres). Documents have length 1."""
    squared = 1 + (centres**2).sum(axis=1) - 2 * (documents @ centres.T)
    positive: npt.NDArray[np.float64] = np.maximum(squared.astype(np.float64), 0)
    return positive
