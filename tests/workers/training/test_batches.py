from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.workers.data.rows import labelled as label_row
from tests.workers.data.rows import pair, plain, prepared, triplet, views
from workers.data.prepared import Prepared
from workers.data.row import Row
from workers.training.batches import MIN_LABEL_BATCH, ROWS_PER_LABEL, Batch, Batches

SOME_DATA = settings(max_examples=60, deadline=None)
Prepare = Callable[[Sequence[Row]], Prepared]


@pytest.fixture(scope="module")
def prepare(tmp_path_factory: pytest.TempPathFactory) -> Prepare:
    def make(rows: Sequence[Row]) -> Prepared:
        return prepared(Path(tmp_path_factory.mktemp("data")) / "entry", rows)

    return make


def pairs(*rows: tuple[int, int]) -> list[Row]:
    return [pair(anchor, positive) for anchor, positive in rows]


def distinct_pairs(n: int) -> list[Row]:
    return pairs(*((2 * row, 2 * row + 1) for row in range(n)))


def labelled(*labels: int) -> list[Row]:
    """One text for each label given."""
    return [label_row(f"text {index}", label) for index, label in enumerate(labels)]


def faq(questions: int) -> list[Row]:
    """So many questions of ten answers."""
    return pairs(*((10 + question, question * question % 10) for question in range(questions)))


def epoch(data: Prepared, batch_size: int, seed: int = 0, **options: bool) -> list[Batch]:
    return list(Batches(data, batch_size=batch_size, seed=seed, **options).epoch(0))


def run(batches: Batches) -> list[Batch]:
    return list(islice(batches.starting_at(batches.start), batches.total_steps))


def drawn(batches: Sequence[Batch]) -> list[tuple[list[int], list[int], list[bool]]]:
    return [(batch.items.tolist(), batch.labels.tolist(), batch.asks.tolist()) for batch in batches]


def used_items(batches: Sequence[Batch]) -> Counter[int]:
    return Counter(item for batch in batches for item in batch.items.tolist())


def no_content_stands_under_two_labels(batch: Batch) -> bool:
    owners: dict[int, set[int]] = {}
    for content, label in zip(batch.contents.tolist(), batch.labels.tolist(), strict=True):
        owners.setdefault(content, set()).add(label)
    return all(len(labels) == 1 for labels in owners.values())


# Pairs


def test_a_pair_shares_a_label_and_no_other_row_has_it(prepare):
    data = prepare(distinct_pairs(5))
    (batch,) = epoch(data, batch_size=8)
    assert batch.rows == 5
    assert batch.items.dtype == batch.labels.dtype == batch.contents.dtype == np.int64
    assert Counter(batch.labels.tolist()) == dict.fromkeys(range(5), 2)
    for label in range(5):
        assert batch.items[batch.labels == label].tolist() == [2 * label, 2 * label + 1]
        assert batch.asks[batch.labels == label].tolist() == [True, False]
    np.testing.assert_array_equal(batch.contents, data.contents[batch.items])


def test_every_pair_is_used_once_an_epoch(prepare):
    batches = epoch(prepare(distinct_pairs(50)), batch_size=8)
    assert [batch.rows for batch in batches] == [8] * 6 + [2]
    assert used_items(batches) == dict.fromkeys(range(100), 1)


def test_a_row_that_would_be_alone_is_left_out(prepare):
    assert [batch.rows for batch in epoch(prepare(distinct_pairs(9)), batch_size=8)] == [8]


def test_a_text_of_several_rows_is_spread_over_batches(prepare):
    batches = epoch(prepare(pairs(*((10 + question, question % 10) for question in range(100)))), batch_size=5)
    assert sum(batch.rows for batch in batches) >= 95
    for batch in batches:
        assert len(set(batch.contents.tolist())) == len(batch.contents)


def test_a_text_in_most_rows_does_not_make_an_epoch_of_tiny_batches(prepare):
    star = [(0, other) for other in range(1, 1001)]
    others = [(2000 + 2 * row, 2001 + 2 * row) for row in range(70)]
    batches = epoch(prepare(pairs(*star, *others)), batch_size=8)
    assert all(batch.rows == 8 for batch in batches[:-1])
    assert len(batches) == 10


def test_a_row_may_be_a_text_and_itself(prepare):
    (batch,) = epoch(prepare(pairs((0, 0), (1, 1))), batch_size=2)
    assert len(set(batch.contents.tolist())) == 2
    assert batch.rows == 2


@SOME_DATA
@given(
    rows=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=2, max_size=60),
    batch_size=st.integers(2, 9),
    seed=st.integers(0, 99),
)
def test_no_batch_of_pairs_holds_a_text_under_two_rows(prepare, rows, batch_size, seed):
    data = prepare(pairs(*rows))
    try:
        batches = epoch(data, batch_size, seed)
    except ValueError:
        assert all(set(one) & set(other) for one, other in itertools.combinations(rows, 2))
        return
    for batch in batches:
        assert 2 <= batch.rows <= batch_size
        assert no_content_stands_under_two_labels(batch)
    assert max(used_items(batches).values()) == 1


@pytest.mark.parametrize("by_length", [False, True])
def test_rows_of_few_texts_are_used_but_for_a_few(prepare, by_length):
    batches = epoch(prepare(faq(400)), 4, bucket_by_length=by_length)
    assert all(no_content_stands_under_two_labels(batch) for batch in batches)
    assert sum(batch.rows for batch in batches) > 300


# Hard negatives


def test_hard_negatives_come_along_and_are_positives_of_nothing(prepare):
    rows = [triplet(f"a{n}", f"p{n}", *(f"n{n} {k}" for k in range(n % 3 + 1))) for n in range(9)]
    data = prepare(rows)
    batches = epoch(data, batch_size=3)
    assert used_items(batches) == dict.fromkeys(range(data.items), 1)
    negatives = []
    for batch in batches:
        counts = Counter(batch.labels.tolist())
        assert sorted(counts[label] for label in counts if label >= 0) == [2] * batch.rows
        assert all(counts[label] == 1 for label in counts if label < 0)
        assert batch.asks.sum() == batch.rows
        assert all(batch.labels[batch.asks] >= 0)
        negatives += [label for label in counts if label < 0]
    assert len(set(negatives)) == len(negatives) == data.items - 18


def test_a_negative_of_one_row_is_never_beside_its_equal_in_another(prepare):
    rows = [triplet(f"a{n}", f"p{n}", f"p{(n + 1) % 12}") for n in range(12)]
    batches = epoch(prepare(rows), batch_size=4)
    assert sum(batch.rows for batch in batches) >= 9
    for batch in batches:
        assert len(set(batch.contents.tolist())) == len(batch.contents)


def test_a_negative_that_its_own_row_names_already_is_left_out(prepare):
    (batch,) = epoch(prepare([triplet("a", "p", "p", "n", "n"), triplet("b", "q", "m")]), batch_size=2)
    assert sorted(batch.items.tolist()) == [0, 1, 3, 5, 6, 7]


# Views and texts


def test_the_views_of_a_row_are_alike(prepare):
    (batch,) = epoch(prepare([views("a", "b", "c"), views("d", "e")]), batch_size=4)
    assert {tuple(batch.items[batch.labels == label]) for label in (0, 1)} == {(0, 1, 2), (3, 4)}
    assert batch.asks.sum() == batch.rows == 2


def test_a_plain_text_stands_twice(prepare):
    batches = epoch(prepare([plain(n) for n in range(10)]), batch_size=4)
    assert used_items(batches) == dict.fromkeys(range(10), 2)
    for batch in batches:
        assert Counter(batch.labels.tolist()) == dict.fromkeys(batch.items.tolist(), 2)
        assert len(batch.items) == 2 * batch.rows == 2 * batch.asks.sum()


def test_a_plain_text_that_recurs_is_not_its_own_negative(prepare):
    batches = epoch(prepare([plain(n % 5) for n in range(20)]), batch_size=5)
    assert [batch.rows for batch in batches] == [5] * 4
    assert all(no_content_stands_under_two_labels(batch) for batch in batches)


def test_vectors_are_batched_as_texts_are(prepare):
    vectors = prepare([Row("vectors", ((float(n), 1.0),), str(n % 2)) for n in range(20)])
    texts = prepare([label_row(f"{n}", n % 2) for n in range(20)])
    assert drawn(epoch(vectors, 8)) == drawn(epoch(texts, 8))
    vector_pairs = prepare([Row("vector_pairs", ((float(n), 1.0), (float(n), 2.0))) for n in range(20)])
    assert drawn(epoch(vector_pairs, 8)) == drawn(epoch(prepare(distinct_pairs(20)), 8))


# Labels


def test_texts_of_a_label_come_in_groups(prepare):
    batches = epoch(prepare(labelled(*(list(range(16)) * 8))), batch_size=16)
    assert [batch.rows for batch in batches] == [16] * 8
    for batch in batches:
        counts = Counter(batch.labels.tolist())
        assert set(counts.values()) <= {ROWS_PER_LABEL, 2 * ROWS_PER_LABEL}
    assert used_items(batches) == dict.fromkeys(range(128), 1)


def test_labels_are_spread_evenly_over_the_epoch(prepare):
    # 900 texts of one label and 100 of another: each batch of 40 has some of both.
    batches = epoch(prepare(labelled(*([0] * 900 + [1] * 100))), batch_size=40)
    assert len(batches) == 25
    assert all(0 < (batch.labels == 1).sum() <= 12 for batch in batches)


def test_two_labels_fill_a_batch_of_any_size(prepare):
    batches = epoch(prepare(labelled(*([0, 1] * 64))), batch_size=32)
    assert [batch.rows for batch in batches] == [32] * 4
    assert all((batch.labels == 0).sum() == 16 for batch in batches)


def test_no_text_is_left_alone_or_used_twice(prepare):
    batches = epoch(prepare(labelled(*([0] * 5 + [1] * 5))), batch_size=8)
    assert used_items(batches) == dict.fromkeys(range(10), 1)
    for batch in batches:
        assert min(Counter(batch.labels.tolist()).values()) >= 2


def test_the_only_text_of_a_label_is_a_negative(prepare):
    (batch,) = epoch(prepare(labelled(0, 0, 1)), batch_size=8)
    assert Counter(Counter(batch.labels.tolist()).values()) == {1: 1, 2: 1}


def test_labels_with_few_texts_are_said(prepare):
    (said,) = Batches(prepare(labelled(0, 0, 0, 0, 1, 1, 1, 2)), batch_size=8, seed=0).notices
    assert said.startswith("Labels with fewer than 4 texts: 2 of 3.")
    assert Batches(prepare(labelled(*([0, 1] * 8))), batch_size=8, seed=0).notices == []


def test_rows_that_repeat_a_text_and_its_label_count_once_and_are_said(prepare):
    rows = labelled(*([0, 1] * 8))
    batches = Batches(prepare(rows * 3), batch_size=8, seed=0)
    assert sum(batch.rows for batch in batches.epoch(0)) == 16
    assert batches.notices == ["Rows that repeat a text and its label, and are left out: 32"]


def test_a_text_with_two_labels_is_never_beside_itself(prepare):
    both = prepare([*labelled(*([0] * 12)), *labelled(*([1] * 6))])
    for seed in range(20):
        for batch in epoch(both, 6, seed):
            assert len(set(batch.contents.tolist())) == len(batch.contents)


@SOME_DATA
@given(
    labels=st.lists(st.integers(0, 5), min_size=4, max_size=60),
    batch_size=st.integers(MIN_LABEL_BATCH, 20),
    seed=st.integers(0, 99),
    by_length=st.booleans(),
)
def test_every_batch_of_labels_has_positives_and_negatives(prepare, labels, batch_size, seed, by_length):
    data = prepare(labelled(*labels))
    try:
        batches = epoch(data, batch_size, seed, bucket_by_length=by_length)
    except ValueError:
        assert len(set(labels)) in (1, len(labels))
        return
    assert max(used_items(batches).values()) == 1
    for batch in batches:
        assert batch.rows == len(batch.items) <= batch_size
        assert 1 < len(set(batch.labels.tolist())) < len(batch.labels)
        assert all(
            data.label_names[label] == str(labels[item]) for item, label in zip(batch.items, batch.labels, strict=True)
        )


# Length buckets

TOPICS = 8


def of_many_lengths(n: int, columns: int) -> list[Row]:
    """Texts whose lengths are spread as in real data, of topics that follow one another in the file."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(3.0, 0.6, (n, columns)), 2, 200).astype(int)
    texts = [
        [f"t{row}c{column} " + "w " * length for column, length in enumerate(each)] for row, each in enumerate(lengths)
    ]
    if columns == 1:
        return [label_row(text, row * TOPICS // n) for row, (text,) in enumerate(texts)]
    return [Row("pairs", tuple(each)) for each in texts]


def padding(data: Prepared, batches: Sequence[Batch]) -> float:
    """The share of padding where what asks and what answers are padded each to its longest."""
    used = padded = 0
    for batch in batches:
        for side in (batch.items[batch.asks], batch.items[~batch.asks]):
            lengths = data.starts[side + 1] - data.starts[side]
            used += int(lengths.sum())
            padded += len(lengths) * int(lengths.max(initial=0))
    return 1 - used / padded


@pytest.mark.parametrize("batch_size", [32, 128])
@pytest.mark.parametrize("columns", [1, 2], ids=["labels", "pairs"])
def test_length_buckets_keep_padding_below_a_tenth(prepare, columns, batch_size):
    data = prepare(of_many_lengths(40_000, columns))
    bucketed = epoch(data, batch_size, bucket_by_length=True)
    assert padding(data, bucketed) < 0.1 < 0.5 < padding(data, epoch(data, batch_size))
    assert used_items(bucketed) == dict.fromkeys(range(data.items), 1)
    assert np.mean([batch.rows for batch in bucketed]) > 0.9 * batch_size


def test_length_buckets_keep_padding_low_where_rows_wait_for_one_another(prepare):
    rows = of_many_lengths(20_000, 2)
    answers = [rows[n // 4].inputs[1] for n in range(len(rows))]
    shuffled = np.random.default_rng(1).permutation(len(rows))
    data = prepare([Row("pairs", (row.inputs[0], answers[n])) for row, n in zip(rows, shuffled, strict=True)])
    assert padding(data, epoch(data, 32, bucket_by_length=True)) < 0.1


def test_length_buckets_do_not_make_batches_of_one_topic(prepare):
    n = 40_000
    data = prepare(of_many_lengths(n, 2))

    def topics(batches: Sequence[Batch]) -> float:
        return float(np.mean([len(set((batch.labels * TOPICS // n).tolist())) for batch in batches]))

    assert topics(epoch(data, 32, bucket_by_length=True)) > 0.98 * topics(epoch(data, 32))


def test_long_and_short_batches_come_in_no_order(prepare):
    data = prepare(of_many_lengths(40_000, 1))
    longest = [data.starts[batch.items + 1].max() for batch in epoch(data, 32, bucket_by_length=True)]
    halves = np.mean(longest[: len(longest) // 2]), np.mean(longest[len(longest) // 2 :])
    assert halves[0] == pytest.approx(halves[1], rel=0.1)


# Runs

KINDS = {
    "pairs": faq(70),
    "triplets": [triplet(n, f"p{n % 20}", f"n{n % 7}", f"m{n}") for n in range(60)],
    "labels": labelled(*([0, 1, 2, 2] * 20)),
    "views": [views(*range(n, n + 2 + n % 3)) for n in range(50)],
    "texts": [plain(n % 40) for n in range(60)],
    "vectors": [Row("vectors", ((float(n % 30),),), str(n % 4)) for n in range(60)],
}


@pytest.mark.parametrize("by_length", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_goes_on_from_every_position(prepare, kind, by_length):
    batches = Batches(prepare(KINDS[kind]), batch_size=8, seed=1, epochs=3, bucket_by_length=by_length)
    whole = run(batches)
    assert len(whole) == batches.total_steps > 6
    for step, batch in enumerate(whole, start=1):
        rest = islice(batches.starting_at(batch.after), len(whole) - step)
        assert drawn(list(rest)) == drawn(whole[step:])


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_batches(prepare, kind):
    data, again = prepare(KINDS[kind]), prepare(KINDS[kind])
    assert drawn(epoch(data, 8, seed=5)) == drawn(epoch(again, 8, seed=5))
    assert drawn(epoch(data, 8, seed=5)) != drawn(epoch(data, 8, seed=6))


@pytest.mark.parametrize("kind", KINDS)
def test_no_two_contents_of_a_batch_are_equal_and_apart(prepare, kind):
    for batch in run(Batches(prepare(KINDS[kind]), batch_size=8, seed=3, epochs=2)):
        assert no_content_stands_under_two_labels(batch)


def test_each_epoch_is_shuffled_anew(prepare):
    whole = run(Batches(prepare(distinct_pairs(32)), batch_size=8, seed=0, epochs=2))
    assert [batch.epoch for batch in whole] == [0] * 4 + [1] * 4
    assert drawn(whole[:4]) != drawn(whole[4:])
    assert used_items(whole[4:]) == dict.fromkeys(range(64), 1)


@pytest.mark.parametrize(("max_steps", "total"), [(3, 3), (8, 8), (1000, 8)])
def test_max_steps_is_an_upper_bound(prepare, max_steps, total):
    batches = Batches(prepare(distinct_pairs(32)), batch_size=8, seed=0, epochs=2, max_steps=max_steps)
    assert batches.total_steps == len(run(batches)) == total


# Refusals


def test_a_batch_must_hold_two_pairs(prepare):
    with pytest.raises(ValueError, match="batch_size must be at least 2"):
        Batches(prepare(distinct_pairs(4)), batch_size=1, seed=0)


def test_a_batch_must_hold_two_labels_of_two_texts(prepare):
    with pytest.raises(ValueError, match="batch_size must be at least 4"):
        Batches(prepare(labelled(0, 0, 1, 1)), batch_size=3, seed=0)


@pytest.mark.parametrize("rows", [pairs((0, 1), (0, 2), (0, 3)), labelled(0, 0, 0), labelled(0, 1, 2)])
def test_rows_that_make_no_batch_are_refused(prepare, rows):
    with pytest.raises(ValueError, match="No batch can be formed"):
        Batches(prepare(rows), batch_size=4, seed=0)
