"""How far the choice of examples moves a difference: the paired bootstrap over groups.

Draw as many groups as there are, with replacement, RESAMPLES times, each with all of its examples and with both of
their values; the 2.5th and 97.5th percentile of the differences bound the 95 % interval. Groups and not examples are
drawn, since examples that share a text depend on one another.

Sources: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, §13.3; Cameron, Gelbach and Miller,
"Bootstrap-Based Improvements for Inference with Clustered Errors", 2008 (groups).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
Indices = npt.NDArray[np.int64]

RESAMPLES = 2000
#: Numbers of drawn groups in memory at a time.
_BLOCK = 4 * 1024 * 1024


class Interval(NamedTuple):
    low: float
    high: float


def of_means(differences: Floats, groups: Indices, *, seed: int) -> Interval:
    """The interval of the mean of (n,) differences, whose groups (n,) are numbered in any way."""
    _, numbers = np.unique(groups, return_inverse=True)
    sums, counts = np.bincount(numbers, differences), np.bincount(numbers)
    rng = np.random.default_rng([seed, 2])
    step = max(1, _BLOCK // len(sums))
    means = []
    for start in range(0, RESAMPLES, step):
        drawn = rng.integers(len(sums), size=(min(step, RESAMPLES - start), len(sums)))
        means.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    return _percentiles(np.concatenate(means))


def of_statistic(statistic: Callable[[Indices], float], n: int, *, seed: int) -> Interval:
    """The interval of a difference that is no mean: of statistic(drawn), for drawn (n,) numbers of examples."""
    rng = np.random.default_rng([seed, 2])
    return _percentiles(np.array([statistic(rng.integers(n, size=n)) for _ in range(RESAMPLES)]))


def of_weighted(statistic: Callable[[Indices], float], groups: Indices, *, seed: int) -> Interval:
    """As `of_statistic`, but whole groups (n,) are drawn: of statistic(times), how often each example is, (n,)."""
    _, numbers = np.unique(groups, return_inverse=True)
    count = int(numbers.max()) + 1
    rng = np.random.default_rng([seed, 2])
    draws = (np.bincount(rng.integers(count, size=count), minlength=count) for _ in range(RESAMPLES))
    return _percentiles(np.array([statistic(times[numbers]) for times in draws]))


def _percentiles(drawn: Floats) -> Interval:
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Interval(float(low), float(high))
