import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from service.demo.retrieval import Places, compare, difference, nearest, places


def all_orders(scores, answer):
    """The oracle: the answer's places under every order of the documents that sorts the scores."""
    documents = range(len(scores))
    for order in itertools.permutations(documents):
        ranked = [scores[document] for document in order]
        if ranked == sorted(ranked, reverse=True):
            yield order.index(answer) + 1


@st.composite
def few_scores(draw):
    return draw(arrays(np.int64, 5, elements=st.integers(0, 2))), draw(st.integers(0, 4))


@given(few_scores())
def test_ties_count_as_the_mean_over_all_their_orders(case):
    scores, answer = case
    found = list(all_orders(scores.tolist(), answer))
    above = np.array([np.sum(scores > scores[answer])])
    beside = np.array([np.sum(scores == scores[answer]) - 1])
    result = Places(above, beside)
    assert result.expected()[0] == pytest.approx(np.mean(found))
    assert result.reciprocal()[0] == pytest.approx(np.mean([1 / place for place in found]))
    for k in (1, 2, 3, 10):
        assert result.recall(k)[0] == pytest.approx(np.mean([place <= k for place in found]))


@given(st.integers(0, 2**32 - 1), st.integers(2, 12))
def test_places_agree_with_sorting(seed, n):
    rng = np.random.default_rng(seed)
    queries, documents = (unit(rng.standard_normal((n, 6))) for _ in range(2))
    result = places(queries, documents)
    for query in range(n):
        scores = [float(np.dot(queries[query], document)) for document in documents]
        assert 1 + result.above[query] == sorted(scores, reverse=True).index(scores[query]) + 1
        assert result.beside[query] == 0


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_one_vector_for_all_texts_gains_nothing():
    same = unit(np.ones((10, 4), dtype=np.float32))
    result = places(same, same)
    assert result.recall(1) == pytest.approx(np.full(10, 0.1))
    assert result.expected() == pytest.approx(np.full(10, 5.5))


def test_perfect_vectors_are_perfect():
    eye = np.eye(12, dtype=np.float32)
    result = places(eye, eye)
    assert result.recall(1).mean() == result.reciprocal().mean() == 1


def test_float_noise_is_a_tie():
    documents = np.array([[1.0, 0.0], [1.0, 1e-8]])
    result = places(np.array([[1.0, 0.0], [1.0, 0.0]]), documents)
    assert result.beside.tolist() == [1, 1]


def test_interval_resamples_queries_with_both_of_their_values():
    rng = np.random.default_rng(7)
    before = rng.random(400)
    constant = difference("MRR", before, before + 0.1)
    assert (constant.gain, constant.low, constant.high) == pytest.approx((0.1, 0.1, 0.1))
    assert constant.is_better


def test_interval_is_that_of_the_normal_approximation_for_many_queries():
    rng = np.random.default_rng(3)
    before, after = rng.random(2000), rng.random(2000) + 0.02
    one = difference("MRR", before, after)
    half = 1.96 * np.std(after - before) / np.sqrt(2000)
    assert one.low == pytest.approx(one.gain - half, abs=0.1 * half)
    assert one.high == pytest.approx(one.gain + half, abs=0.1 * half)


def test_no_difference_is_not_better():
    rng = np.random.default_rng(5)
    values = rng.random(50)
    assert not difference("MRR", values, values).is_better
    assert not difference("MRR", values, rng.permutation(values)).is_better


def test_the_same_seed_gives_the_same_interval():
    before, after = Places(np.arange(30), np.zeros(30, int)), Places(np.arange(30) // 2, np.zeros(30, int))
    assert compare(before, after, seed=1) == compare(before, after, seed=1)
    assert [one.name for one in compare(before, after)] == ["recall@1", "recall@10", "MRR"]


def test_nearest_are_best_first_and_equals_in_order():
    documents = np.array([[0.0, 1.0], [1.0, 0.0], [0.6, 0.8], [1.0, 0.0]])
    found = nearest(np.array([1.0, 0.0]), documents, 3)
    assert [(near.index, near.score) for near in found] == [(1, 1.0), (3, 1.0), (2, 0.6)]
