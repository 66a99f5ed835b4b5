"""Correlation of ranks against slow words of its definition, and against scikit-learn and SciPy."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from workers.evaluation.correlation import auc, mean_ranks, ordered, spearman

#: Few different numbers, so that many are equal.
NUMBERS = st.lists(st.tuples(st.integers(0, 4), st.integers(-2, 2), st.integers(0, 3)), min_size=2, max_size=12)


def slow_rank(value: float, among: Sequence[float]) -> Fraction:
    """The mean of the places that the value's equals take, when all are laid out in order."""
    laid_out = sorted(among)
    places = [place for place, other in enumerate(laid_out, start=1) if other == value]
    return Fraction(sum(places), len(places))


def slow_spearman(one: Sequence[float], other: Sequence[float]) -> float:
    """Exact up to the root; 0 where one has no spread."""
    a, b = ([slow_rank(value, values) for value in values] for values in (one, other))
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    together = sum(((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True)), Fraction(0))
    spread = sum((x - mean_a) ** 2 for x in a) * sum((y - mean_b) ** 2 for y in b)
    return float(together) / float(spread) ** 0.5 if spread else 0.0


def slow_auc(values: Sequence[float], high: Sequence[bool]) -> float:
    """How often a high one is above a low one, over all such pairs."""
    highs = [value for value, is_high in zip(values, high, strict=True) if is_high]
    lows = [value for value, is_high in zip(values, high, strict=True) if not is_high]
    if not highs or not lows:
        return 0.5
    return sum((x > y) + 0.5 * (x == y) for x in highs for y in lows) / (len(highs) * len(lows))


def once(values: Sequence[float]) -> np.ndarray:
    return np.ones(len(values), dtype=np.int64)


@given(NUMBERS)
def test_correlations_are_what_their_definitions_say_however_often_each_pair_counts(
    drawn: list[tuple[int, int, int]],
) -> None:
    one, other, times = (np.array(values) for values in zip(*drawn, strict=True))
    high = other > 0
    repeated = np.repeat(np.arange(len(one)), times)

    if len(repeated):
        expected = slow_spearman(one[repeated].tolist(), other[repeated].tolist())
        assert spearman(ordered(one), ordered(other), times) == pytest.approx(expected)
    expected = slow_auc(one[repeated].tolist(), high[repeated].tolist())
    assert auc(ordered(one), high, times) == pytest.approx(expected)


def test_ties_share_the_mean_of_their_ranks() -> None:
    values = np.array([0.3, 0.1, 0.3, 0.9, 0.3])
    assert mean_ranks(ordered(values), once(values)).tolist() == [3, 1, 3, 5, 3]


def test_they_are_those_of_others() -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(6, size=400)
    cosines = (scores + rng.normal(scale=2, size=400)).round(1)

    ours = spearman(ordered(cosines), ordered(scores), once(scores))
    assert ours == pytest.approx(spearmanr(cosines, scores).statistic)
    assert auc(ordered(cosines), scores > 3, once(scores)) == pytest.approx(roc_auc_score(scores > 3, cosines))


def test_only_the_order_counts() -> None:
    scores = np.array([0.0, 1.5, 2.0, 4.9, 5.0])
    rising, falling = ordered(np.exp(scores)), ordered(-(scores**3))
    assert spearman(rising, ordered(scores), once(scores)) == pytest.approx(1)
    assert spearman(falling, ordered(scores), once(scores)) == pytest.approx(-1)


def test_what_says_nothing_gets_what_chance_gets() -> None:
    scores, same = np.array([0.0, 1.0, 1.0]), np.full(3, 0.7)
    assert spearman(ordered(same), ordered(scores), once(scores)) == 0
    assert auc(ordered(same), scores > 0, once(scores)) == 0.5
