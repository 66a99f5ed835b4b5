"""How well queries find their answers.

Documents are ranked by cosine. A document that scores the same as an answer counts as before it: an encoder that
gives all texts one vector gains nothing by it. Of a query with R answers, at the places r_1 < r_2 < …:

    recall@k   how many of them are among the first k, over R
    MRR        1 / r_1
    nDCG@10    Σ_(r_i ≤ 10) 1 / log2(r_i + 1), over what it is when the answers come first
    MAP@R      Σ_(r_i ≤ R) i / r_i, over R

Each is a number for each query; what is reported is the mean.

Sources: Voorhees, "The TREC-8 Question Answering Track Report", 1999 (MRR); Järvelin and Kekäläinen, "Cumulated
Gain-based Evaluation of IR Techniques", 2002 (nDCG); Musgrave, Belongie and Lim, "A Metric Learning Reality Check",
2020 (MAP@R).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from api_schemas.evaluation import MetricName
from workers.evaluation.questions import Questions

Floats = npt.NDArray[np.floating]
Indices = npt.NDArray[np.int64]

#: Cosines closer than this are the same: a float32 dot product is no more exact.
TIE = 1e-6
#: Cosines in memory at a time.
_BLOCK = 4 * 1024 * 1024


def places(queries: Floats, documents: Floats, questions: Questions) -> Indices:
    """The place of each answer, from 1, the answers of a query in ascending order; (p,).

    queries (n, d) and documents (m + k, d), rows of unit length.
    """
    found = np.zeros(len(questions.asking), dtype=np.int64)
    ends = np.searchsorted(questions.asking, np.arange(len(queries)), side="right")
    step = max(1, _BLOCK // len(documents))
    for start in range(0, len(queries), step):
        scores = queries[start : start + step] @ documents.T
        for query, row in enumerate(scores, start):
            pairs = slice(ends[query - 1] if query else 0, ends[query])
            found[pairs] = _places_of(row, questions.answers[pairs], int(questions.itself[query]))
    return found


def _places_of(scores: Floats, answers: Indices, itself: int) -> Indices:
    """scores (m + k,) of one query. Its own text is no document."""
    right = np.sort(scores[answers])[::-1]
    scores[answers] = -np.inf
    if itself >= 0:
        scores[itself] = -np.inf
    before = np.sort(scores)
    above = len(before) - np.searchsorted(before, right - TIE, side="left")
    return above + np.arange(1, len(right) + 1)


def best_places(found: Indices, questions: Questions) -> Indices:
    """The place of each query's first answer, from 1; (n,)."""
    return found[np.searchsorted(questions.asking, np.arange(len(questions.queries)))]


def recall(found: Indices, questions: Questions, k: int) -> Floats:
    """(n,) like all that follow."""
    counts = _counts(questions)
    hits: Floats = np.bincount(questions.asking, found <= k, len(counts)) / counts
    return hits


def reciprocal_rank(found: Indices, questions: Questions) -> Floats:
    return 1 / best_places(found, questions)


def ndcg(found: Indices, questions: Questions, k: int = 10) -> Floats:
    counts = _counts(questions)
    gains = np.where(found <= k, 1 / np.log2(found + 1), 0)
    ideal = np.cumsum(1 / np.log2(np.arange(1, k + 1) + 1))
    of_ideal: Floats = np.bincount(questions.asking, gains, len(counts)) / ideal[np.minimum(counts, k) - 1]
    return of_ideal


def average_precision_at_r(found: Indices, questions: Questions) -> Floats:
    counts = _counts(questions)
    number = np.arange(len(found)) - np.repeat(np.cumsum(counts) - counts, counts) + 1
    precisions = np.where(found <= np.repeat(counts, counts), number / found, 0)
    mean: Floats = np.bincount(questions.asking, precisions, len(counts)) / counts
    return mean


def _counts(questions: Questions) -> Indices:
    """R of each query; (n,)."""
    return np.bincount(questions.asking, minlength=len(questions.queries))


#: What is measured on queries and documents, by the name it is reported under.
METRICS: Mapping[MetricName, Callable[[Indices, Questions], Floats]] = {
    "recall@1": lambda found, questions: recall(found, questions, 1),
    "recall@5": lambda found, questions: recall(found, questions, 5),
    "recall@10": lambda found, questions: recall(found, questions, 10),
    "mrr": reciprocal_rank,
    "ndcg@10": ndcg,
}
