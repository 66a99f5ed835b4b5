"""Whether cosines order pairs as their scores do.

Ranks count from 1; equal values share the mean of their ranks. With a_i and b_i the ranks of pair i by its cosine and
by its score, m the mean of n ranks,

    ρ = Σ (a_i − m)(b_i − m) / √(Σ (a_i − m)² Σ (b_i − m)²)    Spearman's rank correlation, from −1 to 1

    AUC = (Σ_(i high) a_i − h (h + 1) / 2) / (h (n − h))       where scores are two, h pairs having the higher

Both take how often each pair counts, for resamples: ranks are then those of a list in which it stands as often. What
says nothing gets what chance gets: ρ is 0 where all cosines or all scores are equal, and the AUC 1/2 where all scores
are.

Sources: Spearman, "The Proof and Measurement of Association between Two Things", 1904; Kendall, "The Treatment of Ties
in Ranking Problems", 1945; Hanley and McNeil, "The Meaning and Use of the Area under a Receiver Operating
Characteristic (ROC) Curve", 1982 (as the Mann-Whitney statistic).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
Indices = npt.NDArray[np.integer[Any]]


def ordered(values: Floats) -> Indices:
    """The number of each value among the different ones, from 0 for the lowest, (n,): all that ranks depend on."""
    numbers: Indices = np.unique(values, return_inverse=True)[1]
    return numbers


def mean_ranks(numbers: Indices, times: Indices) -> Floats:
    """The rank of each of `ordered` values, (n,), which stand in the list so many times each, (n,)."""
    counts = np.bincount(numbers, times)
    ranks: Floats = (np.cumsum(counts) - (counts - 1) / 2)[numbers]
    return ranks


def spearman(one: Indices, other: Indices, times: Indices) -> float:
    """ρ of two lists of `ordered` values, (n,) each."""
    middle = (times.sum() + 1) / 2
    a, b = mean_ranks(one, times) - middle, mean_ranks(other, times) - middle
    spread = math.sqrt(float((times * a**2).sum()) * float((times * b**2).sum()))
    return float((times * a * b).sum()) / spread if spread else 0.0


def auc(one: Indices, high: npt.NDArray[np.bool_], times: Indices) -> float:
    """AUC of `ordered` values, (n,), of which some should be `high`, (n,)."""
    h, n = float(times[high].sum()), float(times.sum())
    if h in (0, n):
        return 0.5
    ranks = float((times * mean_ranks(one, times))[high].sum())
    return (ranks - h * (h + 1) / 2) / (h * (n - h))
