from __future__ import annotations

import math
from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.workers.data.rows import labelled, pair, prepared, triplet
from workers.training.batches import Batch, NoBatchError
from workers.training.mixing import Mixture, mixing_shares


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """80 pairs, 20 triplets and 40 labelled texts, some of which are the same texts under the same names."""
    folder = tmp_path_factory.mktemp("mixed")
    return [
        prepared(folder / "pairs", [pair(f"text {n}", f"answer {n % 30}") for n in range(80)]),
        prepared(folder / "triplets", [triplet(f"text {n}", f"p {n}", f"n {n}") for n in range(20)]),
        prepared(folder / "labels", [labelled(f"text {n}", n % 4) for n in range(40)]),
        prepared(folder / "more labels", [labelled(f"other {n}", n % 4) for n in range(40)]),
    ]


def drawn(batches: list[Batch]) -> list[tuple[int, list[int], list[int]]]:
    return [(batch.source, batch.items.tolist(), batch.labels.tolist()) for batch in batches]


def run(mixture: Mixture) -> list[Batch]:
    return list(mixture.starting_at(mixture.start))


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_a_run_goes_on_from_every_position(datasets, temperature):
    mixture = Mixture(datasets, batch_size=8, seed=3, epochs=2, temperature=temperature)
    whole = run(mixture)
    assert len(whole) == mixture.total_steps
    for step, batch in enumerate(whole, start=1):
        assert drawn(list(mixture.starting_at(batch.after))) == drawn(whole[step:])
    again = Mixture(datasets, batch_size=8, seed=3, epochs=2, temperature=temperature)
    assert drawn(run(again)) == drawn(whole)
    other = Mixture(datasets, batch_size=8, seed=4, epochs=2, temperature=temperature)
    assert drawn(run(other)) != drawn(whole)


@pytest.mark.parametrize(
    ("temperature", "shares"),
    [
        (1.0, [80 / 180, 20 / 180, 40 / 180, 40 / 180]),
        (2.0, [4, 2, 8**0.5, 8**0.5]),
        (math.inf, [0.25] * 4),
    ],
)
def test_steps_are_shared_by_the_powers_of_the_sizes(datasets, temperature, shares):
    mixture = Mixture(datasets, batch_size=8, seed=0, epochs=10, temperature=temperature)
    counts = Counter(batch.source for batch in run(mixture))
    expected = np.array(shares) / sum(shares) * mixture.total_steps
    assert max(abs(counts[source] - expected[source]) for source in range(4)) < 1


@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=9), st.floats(0.01, 100))
def test_shares_are_normalised_and_in_the_order_of_the_sizes(sizes, temperature):
    shares = mixing_shares(sizes, temperature)
    assert shares.sum() == pytest.approx(1)
    ordered = shares[np.argsort(sizes, kind="stable")]
    assert all(np.diff(ordered) >= 0)


def test_a_small_dataset_that_comes_often_is_shuffled_anew(datasets):
    batches = run(Mixture(datasets[:2], batch_size=8, seed=0, epochs=4, temperature=math.inf))
    small = [batch for batch in batches if batch.source == 1]
    assert max(batch.epoch for batch in small) > max(batch.epoch for batch in batches if batch.source == 0)
    assert len({tuple(batch.items.tolist()) for batch in small}) == len(small)


def test_labels_of_two_datasets_are_never_equal(datasets):
    batches = run(Mixture(datasets, batch_size=8, seed=0, epochs=3))
    labels = [
        {int(label) for batch in batches if batch.source == source for label in batch.labels} for source in range(4)
    ]
    assert all(labels)
    assert len(set.union(*labels)) == sum(map(len, labels))


def test_contents_are_equal_where_the_texts_are(datasets):
    batches = run(Mixture(datasets, batch_size=8, seed=0))
    contents = [set(np.concatenate([b.contents for b in batches if b.source == s]).tolist()) for s in range(4)]
    assert contents[0] & contents[2]
    assert not contents[2] & contents[3]


def test_one_dataset_alone_is_what_it_is_without_a_mixture(datasets):
    mixture = Mixture(datasets[:1], batch_size=8, seed=5, epochs=2)
    alone = mixture._batches[0]
    assert mixture.total_steps == alone.total_steps
    assert drawn(run(mixture)) == drawn(list(islice(alone.starting_at(alone.start), alone.total_steps)))


def test_max_steps_is_an_upper_bound(datasets):
    mixture = Mixture(datasets, batch_size=8, seed=0, epochs=50, max_steps=7)
    assert mixture.total_steps == len(run(mixture)) == 7


def test_notices_of_all_datasets_are_said(datasets, tmp_path):
    small = prepared(tmp_path / "small", [labelled(n, n % 3) for n in range(7)])
    (said,) = Mixture([*datasets, small], batch_size=8, seed=0).notices
    assert said.startswith(f"Training file {len(datasets) + 1}: ")
    assert "3 of 3" in said


def test_a_dataset_that_makes_no_batch_is_refused(datasets, tmp_path):
    bad = prepared(tmp_path / "bad", [pair(0, n) for n in range(5)])
    with pytest.raises(NoBatchError, match="No batch can be formed"):
        Mixture([*datasets, bad], batch_size=8, seed=0)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_a_temperature_must_be_above_zero(datasets, temperature):
    with pytest.raises(ValueError, match="must be above 0"):
        Mixture(datasets, batch_size=8, seed=0, temperature=temperature)
