"""The pairs of a split that have scores, or a sample of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from workers.data.prepared import Prepared
from workers.evaluation.groups import groups_of
from workers.evaluation.questions import MOST_ROWS, NoQuestionsError

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ScoredPairs:
    """p pairs of u different first texts and v different second ones. A text may be both: it is then read as both."""

    firsts: Indices  # (u,) items of the split
    seconds: Indices  # (v,)
    pairs: Indices  # (p, 2) numbers of a first and of a second text
    scores: npt.NDArray[np.float64]  # (p,)
    groups: Indices  # (p,) pairs of one group depend on each other
    rows: Indices  # (p,) of the split


def scored_pairs_of(split: Prepared, *, seed: int) -> ScoredPairs:
    """The pairs of a split's rows, or of a sample where they are too many. Raises NoQuestionsError."""
    assert split.scores is not None  # noqa: S101 (asked of scored pairs only)
    rows = split.rows.astype(np.int64)
    if len(rows) > MOST_ROWS:
        rows = np.sort(np.random.default_rng([seed, len(rows)]).choice(rows, MOST_ROWS, replace=False))
    scores = split.scores[rows]
    if len(np.unique(scores)) == 1:
        raise NoQuestionsError("all pairs that would be compared have one score")
    firsts, seconds = split.row_starts[rows], split.row_starts[rows] + 1
    _, first, number = np.unique(split.contents[firsts], return_index=True, return_inverse=True)
    _, second, other = np.unique(split.contents[seconds], return_index=True, return_inverse=True)
    groups = groups_of(split, rows)
    return ScoredPairs(
        firsts=firsts[first],
        seconds=seconds[second],
        pairs=np.stack([number, other], axis=1),
        scores=scores,
        # Where all pairs are connected, resamples of whole groups would be all alike: then each is drawn alone.
        groups=groups if groups.any() else np.arange(len(rows)),
        rows=rows,
    )
