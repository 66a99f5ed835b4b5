"""How far apart what is alike and what isn't lie: cosines of right pairs and of random wrong ones, and their AUC.

AUC is the chance that a right pair has a higher cosine than a wrong one, ties counting half: the area under the ROC
curve, which is the Mann-Whitney statistic. Source: Hanley and McNeil, "The Meaning and Use of the Area under a
Receiver Operating Characteristic (ROC) Curve", 1982.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from workers.evaluation.questions import Questions

Floats = npt.NDArray[np.floating]
Indices = npt.NDArray[np.int64]

#: Pairs of each kind that are looked at.
_MOST_PAIRS = 20_000


class Pairs(NamedTuple):
    """Pairs of a query and a document, by number: right ones, and as many random wrong ones. (r, 2) and (w, 2)."""

    right: Indices
    wrong: Indices


def drawn_pairs(questions: Questions, *, seed: int) -> Pairs:
    """The same pairs for the same seed, so that two encoders are compared on the same."""
    rng = np.random.default_rng([seed, 1])
    right = np.stack([questions.asking, questions.answers], axis=1)
    if len(right) > _MOST_PAIRS:
        right = right[np.sort(rng.choice(len(right), _MOST_PAIRS, replace=False))]
    documents = len(questions.documents)
    count = min(_MOST_PAIRS, 10 * len(right))
    wrong = np.stack([rng.choice(right[:, 0], count), rng.integers(documents, size=count)], axis=1)
    known = questions.asking * documents + questions.answers  # ascending: answers of a query are
    own = questions.itself[wrong[:, 0]] == wrong[:, 1]
    return Pairs(right, wrong[~np.isin(wrong[:, 0] * documents + wrong[:, 1], known) & ~own])


def cosines(pairs: Indices, queries: Floats, documents: Floats) -> Floats:
    """Of pairs (p, 2) of queries (n, d) and documents (m, d); (p,)."""
    found: Floats = np.einsum("pd,pd->p", queries[pairs[:, 0]], documents[pairs[:, 1]])
    return found


def chances(right: Floats, wrong: Floats) -> Floats:
    """Of each right pair, how many of the wrong ones have a lower cosine, over all; (r,). Their mean is the AUC."""
    ordered = np.sort(wrong)
    below = np.searchsorted(ordered, right, side="left") + np.searchsorted(ordered, right, side="right")
    return below / (2 * len(ordered))
