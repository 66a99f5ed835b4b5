from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from encoders.text import TextEncoder
from encoders.vectors import VectorAdapter
from tests.workers.data.rows import prepared
from workers.data.prepared import Prepared
from workers.data.row import Row
from workers.training.batches import Batch, Batches
from workers.training.config import TrainingConfig
from workers.training.inputs import BatchInputs, select, tokens_in


@pytest.fixture
def vectors(tmp_path: Path) -> Prepared:
    rows = [Row("vectors", ((float(n + 1), 1.0, -2.0, 0.5),), str(n % 3)) for n in range(12)]
    return prepared(tmp_path / "entry", rows)


@pytest.fixture
def given(vectors: Prepared, config: TrainingConfig) -> Callable[..., tuple[Batch, np.ndarray]]:
    """The first batch of an epoch, and what an adapter is given of it under a view."""

    def batch_and_inputs(view: str, epoch: int = 0) -> tuple[Batch, np.ndarray]:
        told = replace(config, view=view)
        batch = next(Batches(vectors, batch_size=8, seed=0).epoch(epoch))
        made = BatchInputs(told, VectorAdapter.untrained("linear", 4, seed=0))(vectors, batch)
        assert isinstance(made, np.ndarray)
        return batch, made

    return batch_and_inputs


def test_vectors_are_the_files_own_unless_a_view_is_asked_for(vectors: Prepared, given: Callable[..., object]) -> None:
    batch, made = given("dropout")
    np.testing.assert_array_equal(made, vectors.vectors[batch.items])
    np.testing.assert_array_equal(made, select(vectors, batch.items))


def test_noise_moves_every_vector_a_little_and_anew_in_each_epoch(
    vectors: Prepared, given: Callable[..., object]
) -> None:
    batch, made = given("noise")
    moved = np.linalg.norm(made - vectors.vectors[batch.items], axis=1)
    assert (moved > 0).all()
    assert (moved < 0.5 * np.linalg.norm(vectors.vectors[batch.items], axis=1)).all()
    np.testing.assert_array_equal(made, given("noise")[1])
    later, again = given("noise", epoch=1)
    both = {int(item) for item in batch.items} & {int(item) for item in later.items}
    assert both
    for item in both:
        assert not np.array_equal(made[batch.items == item], again[later.items == item])


def test_masking_sets_numbers_to_zero_and_leaves_the_rest(vectors: Prepared, given: Callable[..., object]) -> None:
    batch, made = given("masking")
    kept = made == vectors.vectors[batch.items]
    assert not made[~kept].any()
    assert kept.any(axis=1).all()


def test_vectors_hold_no_tokens_and_texts_do(vectors: Prepared, data: Prepared, encoder: TextEncoder) -> None:
    items = np.arange(3)
    assert tokens_in(select(vectors, items)) == 0
    assert tokens_in(select(data, items)) == data.starts[3]
