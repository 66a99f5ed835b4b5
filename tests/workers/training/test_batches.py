from __future__ import annotations

import itertools
from array import array
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.training.batches import MIN_LABEL_BATCH, ROWS_PER_LABEL, Batch, Batches
from workers.training.datasets import LabelDataset, PairDataset

SOME_DATA = settings(max_examples=60, deadline=None)


def pairs(*rows: tuple[int, int]) -> PairDataset:
    texts = [str(index) for index in range(1 + max(itertools.chain(*rows)))]
    anchors, positives = zip(*rows, strict=True)
    return PairDataset(texts, array("i", anchors), array("i", positives))


def distinct_pairs(n: int) -> PairDataset:
    return pairs(*((2 * row, 2 * row + 1) for row in range(n)))


def labelled(*labels: int) -> LabelDataset:
    """One text for each label given."""
    texts = [str(index) for index in range(len(labels))]
    names = [str(label) for label in range(1 + max(labels))]
    return LabelDataset(texts, array("i", range(len(labels))), array("i", labels), names)


def epoch(dataset: PairDataset | LabelDataset, batch_size: int, seed: int = 0) -> list[Batch]:
    return list(Batches(dataset, batch_size=batch_size, seed=seed).starting_at(0))


def contents(batches: list[Batch]) -> list[tuple[list[int], list[int]]]:
    return [(batch.texts.tolist(), batch.labels.tolist()) for batch in batches]


# Pairs


def test_a_pair_shares_a_label_and_no_other_row_has_it():
    (batch,) = epoch(distinct_pairs(5), batch_size=8)
    assert batch.rows == 5
    assert batch.texts.dtype == batch.labels.dtype == np.int64
    assert Counter(batch.labels.tolist()) == dict.fromkeys(range(5), 2)
    for label in range(5):
        assert set(batch.texts[batch.labels == label]) == {2 * label, 2 * label + 1}


def test_every_pair_is_used_once_an_epoch():
    batches = epoch(distinct_pairs(50), batch_size=8)
    assert [batch.rows for batch in batches] == [8] * 6 + [2]
    assert sorted(text for batch in batches for text in batch.texts) == list(range(100))


def test_a_row_that_would_be_alone_is_left_out():
    assert [batch.rows for batch in epoch(distinct_pairs(9), batch_size=8)] == [8]


def test_a_text_of_several_rows_is_spread_over_batches():
    # Ten answers of ten questions each; the answers are texts 0 to 9.
    faq = pairs(*((10 + question, question % 10) for question in range(100)))
    batches = epoch(faq, batch_size=5)
    assert sum(batch.rows for batch in batches) >= 95
    for batch in batches:
        assert len(set(batch.texts.tolist())) == len(batch.texts)


def test_a_text_in_most_rows_does_not_make_an_epoch_of_tiny_batches():
    star = [(0, other) for other in range(1, 1001)]
    others = [(2000 + 2 * row, 2001 + 2 * row) for row in range(70)]
    batches = epoch(pairs(*star, *others), batch_size=8)
    assert all(batch.rows == 8 for batch in batches[:-1])
    assert len(batches) == 10


def test_a_row_may_be_a_text_and_itself():
    (batch,) = epoch(pairs((0, 0), (1, 1)), batch_size=2)
    assert sorted(batch.texts.tolist()) == [0, 0, 1, 1]


@SOME_DATA
@given(
    rows=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=2, max_size=60),
    batch_size=st.integers(2, 9),
    seed=st.integers(0, 99),
)
def test_no_batch_of_pairs_holds_a_text_under_two_rows(rows, batch_size, seed):
    try:
        batches = epoch(pairs(*rows), batch_size, seed)
    except ValueError:
        assert all(set(one) & set(other) for one in rows for other in rows)
        return
    for batch in batches:
        assert 2 <= batch.rows <= batch_size
        owners: dict[int, set[int]] = {}
        for text, label in zip(batch.texts.tolist(), batch.labels.tolist(), strict=True):
            owners.setdefault(text, set()).add(label)
        assert all(len(labels) == 1 for labels in owners.values())
    used = Counter(label for batch in batches for label in set(batch.labels.tolist()))
    assert set(used.values()) == {1}


# Labels


def test_texts_of_a_label_come_in_groups():
    batches = epoch(labelled(*(list(range(16)) * 8)), batch_size=16)
    assert [batch.rows for batch in batches] == [16] * 8
    for batch in batches:
        counts = Counter(batch.labels.tolist())
        assert set(counts.values()) <= {ROWS_PER_LABEL, 2 * ROWS_PER_LABEL}
    assert sorted(text for batch in batches for text in batch.texts) == list(range(128))


def test_labels_are_spread_evenly_over_the_epoch():
    # 900 texts of one label and 100 of another: each batch of 40 has some of both.
    batches = epoch(labelled(*([0] * 900 + [1] * 100)), batch_size=40)
    assert len(batches) == 25
    assert all(0 < (batch.labels == 1).sum() <= 12 for batch in batches)


def test_two_labels_fill_a_batch_of_any_size():
    batches = epoch(labelled(*([0, 1] * 64)), batch_size=32)
    assert [batch.rows for batch in batches] == [32] * 4
    assert all((batch.labels == 0).sum() == 16 for batch in batches)


def test_a_text_left_over_borrows_another_of_its_label():
    batches = epoch(labelled(*([0] * 5 + [1] * 5)), batch_size=8)
    used = Counter(int(text) for batch in batches for text in batch.texts)
    assert set(used) == set(range(10))
    assert sorted(used.values()) == [1] * 8 + [2] * 2
    for batch in batches:
        assert len(set(batch.texts.tolist())) == len(batch.texts)


def test_the_only_text_of_a_label_is_a_negative():
    (batch,) = epoch(labelled(0, 0, 1), batch_size=8)
    assert sorted(batch.labels.tolist()) == [0, 0, 1]


def test_a_text_with_two_labels_is_never_beside_itself():
    texts = [str(index) for index in range(12)]
    both = LabelDataset(texts, array("i", [*range(12), *range(6)]), array("i", [0] * 12 + [1] * 6), ["0", "1"])
    for seed in range(20):
        for batch in Batches(both, batch_size=6, seed=seed).starting_at(0):
            assert len(set(batch.texts.tolist())) == len(batch.texts)


@SOME_DATA
@given(
    labels=st.lists(st.integers(0, 5), min_size=4, max_size=60),
    batch_size=st.integers(MIN_LABEL_BATCH, 20),
    seed=st.integers(0, 99),
)
def test_every_batch_of_labels_has_positives_and_negatives(labels, batch_size, seed):
    try:
        batches = epoch(labelled(*labels), batch_size, seed)
    except ValueError:
        assert len(set(labels)) in (1, len(labels))
        return
    used = Counter(int(text) for batch in batches for text in batch.texts)
    assert max(used.values()) <= 2
    for batch in batches:
        assert batch.rows == len(batch.texts) <= batch_size
        assert len(set(batch.texts.tolist())) == len(batch.texts)
        assert 1 < len(set(batch.labels.tolist())) < len(batch.labels)
        assert all(labels[text] == label for text, label in zip(batch.texts, batch.labels, strict=True))


# Runs


@pytest.mark.parametrize("dataset", [distinct_pairs(30), labelled(*([0, 1, 2] * 20))])
def test_the_same_seed_gives_the_same_batches(dataset):
    assert contents(epoch(dataset, 8, seed=5)) == contents(epoch(dataset, 8, seed=5))
    assert contents(epoch(dataset, 8, seed=5)) != contents(epoch(dataset, 8, seed=6))


def test_each_epoch_is_shuffled_anew():
    run = list(Batches(distinct_pairs(32), batch_size=8, seed=0, epochs=2).starting_at(0))
    assert len(run) == 8
    assert contents(run[:4]) != contents(run[4:])
    assert sorted(text for batch in run[4:] for text in batch.texts) == list(range(64))


@pytest.mark.parametrize("step", [0, 1, 6, 7, 13, 20, 21])
def test_a_run_can_be_taken_up_at_any_step(step):
    faq = pairs(*((10 + question, question % 10) for question in range(50)))
    batches = Batches(faq, batch_size=8, seed=1, epochs=3)
    whole = contents(list(batches.starting_at(0)))
    assert contents(list(batches.starting_at(step))) == whole[step:]


@pytest.mark.parametrize("epochs", [1, 2, 5])
def test_the_number_of_steps_is_known_exactly(epochs):
    faq = pairs(*((10 + question, (question * question) % 10) for question in range(70)))
    batches = Batches(faq, batch_size=8, seed=1, epochs=epochs)
    assert batches.total_steps == len(list(batches.starting_at(0)))


@pytest.mark.parametrize(("max_steps", "total"), [(3, 3), (8, 8), (1000, 8)])
def test_max_steps_is_an_upper_bound(max_steps, total):
    batches = Batches(distinct_pairs(32), batch_size=8, seed=0, epochs=2, max_steps=max_steps)
    assert batches.total_steps == len(list(batches.starting_at(0))) == total


# Refusals


def test_a_batch_must_hold_two_pairs():
    with pytest.raises(ValueError, match="batch_size must be at least 2"):
        Batches(distinct_pairs(4), batch_size=1, seed=0)


def test_a_batch_must_hold_two_labels_of_two_texts():
    with pytest.raises(ValueError, match="batch_size must be at least 4"):
        Batches(labelled(0, 0, 1, 1), batch_size=3, seed=0)


@pytest.mark.parametrize("dataset", [pairs((0, 1), (0, 2), (0, 3)), labelled(0, 0, 0), labelled(0, 1, 2)])
def test_rows_that_make_no_batch_are_refused(dataset):
    with pytest.raises(ValueError, match="No batch can be formed"):
        Batches(dataset, batch_size=4, seed=0)
