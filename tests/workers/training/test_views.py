from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.training.views import GaussianNoise, Masking, SpanCrop, View, WordDeletion, apply, unchanged

CLS, SEP = 101, 102
#: Of 100 tokens, the odd ones continue a word.
CONTINUES = np.arange(200) % 2 == 1
TOKENS = st.lists(st.integers(0, 99), max_size=30).map(lambda inner: np.array([CLS, *inner, SEP], dtype=np.int32))
TEXT_VIEWS = [WordDeletion(0.5), WordDeletion(0.5, CONTINUES), SpanCrop(), SpanCrop(0.1, 0.4, CONTINUES)]
VECTOR_VIEWS = [GaussianNoise(), Masking(0.5)]


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def words(tokens: np.ndarray) -> list[tuple[int, ...]]:
    """Cut before each even token."""
    found: list[list[int]] = []
    for token in tokens[1:-1].tolist():
        if not found or not CONTINUES[token]:
            found.append([])
        found[-1].append(token)
    return [tuple(word) for word in found]


def text(n: int) -> np.ndarray:
    """n different words of two tokens."""
    return np.array([CLS, *range(2 * n), SEP], dtype=np.int32)


@pytest.mark.parametrize("view", TEXT_VIEWS)
@given(tokens=TOKENS, seed=st.integers(0, 99))
def test_a_text_keeps_its_frame_its_order_and_something(view, tokens, seed):
    before = tokens.copy()
    changed = view(tokens, generator(seed))
    np.testing.assert_array_equal(tokens, before)
    assert changed.dtype == np.int32
    assert (changed[0], changed[-1]) == (CLS, SEP)
    assert min(len(tokens), 3) <= len(changed) <= len(tokens)
    left = iter(tokens.tolist())
    assert all(token in left for token in changed.tolist())


@pytest.mark.parametrize("view", [WordDeletion(0.5, CONTINUES), SpanCrop(0.1, 0.9, CONTINUES)])
@given(seed=st.integers(0, 99))
def test_a_word_stays_or_goes_as_a_whole(view, seed):
    tokens = text(20)
    assert set(words(view(tokens, generator(seed)))) <= set(words(tokens))


def test_words_are_deleted_at_the_rate():
    view, rng = WordDeletion(0.2, CONTINUES), generator()
    kept = [len(words(view(text(30), rng))) for _ in range(300)]
    assert np.mean(kept) == pytest.approx(24, rel=0.02)


@given(seed=st.integers(0, 99))
def test_a_span_is_a_run_of_words_of_the_length_asked_for(seed):
    tokens = text(40)
    span = SpanCrop(0.25, 0.5, CONTINUES)(tokens, generator(seed))
    assert 10 <= len(words(span)) <= 20
    inner = span[1:-1].tolist()
    assert inner == list(range(inner[0], inner[0] + len(inner)))


def test_spans_reach_both_ends():
    rng = generator()
    spans = [SpanCrop(0.5, 0.5)(text(10), rng)[1:-1] for _ in range(300)]
    assert min(span[0] for span in spans) == 0
    assert max(span[-1] for span in spans) == 19


def test_noise_is_as_large_as_said():
    vector = np.random.default_rng(1).standard_normal(4096).astype(np.float32) * 7
    noise = GaussianNoise(0.3)(vector, generator()) - vector
    assert noise.dtype == np.float32
    assert noise.std() == pytest.approx(0.3 * 7, rel=0.05)
    assert abs(noise.mean()) < 0.1


def test_numbers_are_masked_at_the_rate_and_the_others_stay():
    vector = np.arange(1, 4097, dtype=np.float32)
    masked = Masking(0.25)(vector, generator())
    assert (masked == 0).mean() == pytest.approx(0.25, abs=0.03)
    np.testing.assert_array_equal(masked[masked != 0], vector[masked != 0])


@given(seed=st.integers(0, 99))
def test_a_vector_is_never_masked_to_nothing(seed):
    assert Masking(0.999)(np.ones(3, dtype=np.float32), generator(seed)).any()


def views_of(view: View, items: list[int], *, seed: int = 7, epoch: int = 0) -> list[list[float]]:
    contents = [text(30) if view in TEXT_VIEWS else np.ones(30, dtype=np.float32) for _ in items]
    return [each.tolist() for each in apply(view, contents, np.array(items), seed=seed, epoch=epoch)]


@pytest.mark.parametrize("view", TEXT_VIEWS + VECTOR_VIEWS)
def test_a_view_depends_on_seed_epoch_and_item_and_on_nothing_else(view):
    first, second, other, _ = views_of(view, [3, 3, 8, 8])
    assert first != second
    assert other != first
    # In another batch, beside others.
    assert views_of(view, [5, 3, 8, 5, 3])[1::3] == [first, second]
    assert views_of(view, [3], epoch=1) != [first]
    assert views_of(view, [3], seed=8) != [first]


def test_the_dropout_view_is_the_text_itself():
    tokens = text(3)
    (same,) = apply(unchanged, [tokens], np.array([0]), seed=0, epoch=0)
    assert same is tokens
