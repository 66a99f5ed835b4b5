from __future__ import annotations

import pytest
import torch

from workers.training.batch_loss import yardstick
from workers.training.batches import Batches
from workers.training.config import LossConfig
from workers.training.evaluation import validation_loss
from workers.training.losses import NTXentLoss
from workers.training.tokens import select


@pytest.fixture
def loss(encoder):
    return yardstick(LossConfig(temperature=0.1), dimension=encoder.dimension)


def test_it_is_the_mean_over_all_pairs(encoder, data, loss):
    # Batches of 8 and 4 pairs.
    by_itself = NTXentLoss(temperature=0.1)
    total, pairs = 0.0, 0
    for batch in Batches(data, batch_size=8, seed=3).epoch(0):
        with torch.no_grad():
            value = by_itself(encoder(select(data, batch.items)), torch.from_numpy(batch.labels)).item()
        total += value * 2 * batch.rows
        pairs += 2 * batch.rows
    assert pairs == 24
    assert validation_loss(encoder, data, loss, batch_size=8, seed=3) == pytest.approx(total / pairs)


@pytest.mark.parametrize("training", [True, False])
def test_it_runs_without_dropout_and_leaves_the_mode(encoder, data, loss, training):
    encoder.train(training)
    values = {validation_loss(encoder, data, loss, batch_size=8, seed=0) for _ in range(3)}
    assert len(values) == 1
    assert encoder.training is training


def test_the_mode_is_left_when_it_fails(encoder, data, loss):
    encoder.train()
    with pytest.raises(ValueError, match="batch_size"):
        validation_loss(encoder, data, loss, batch_size=1, seed=0)
    assert encoder.training


def test_it_leaves_no_gradients(encoder, data, loss):
    validation_loss(encoder, data, loss, batch_size=8, seed=0)
    assert all(parameter.grad is None for parameter in encoder.parameters())


def test_it_can_be_left_before_each_batch(encoder, data, loss):
    batches = []

    def count():
        batches.append(1)
        if len(batches) == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        validation_loss(encoder, data, loss, batch_size=8, seed=0, before_batch=count)
    assert len(batches) == 2
