from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from workers.training.batch_loss import BatchLoss
from workers.training.batches import Batches
from workers.training.config import LossConfig
from workers.training.matryoshka import MatryoshkaLoss
from workers.training.trainer import Trainer

CONFIG = LossConfig(temperature=0.1)


@pytest.fixture
def batch(data):
    return next(iter(Batches(data, batch_size=4, seed=0).epoch(0)))


def rows(batch, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(batch.items), 8, dtype=torch.float64, generator=generator).requires_grad_()


def test_the_loss_and_its_gradient_are_the_sum_over_prefixes(batch):
    embeddings = rows(batch)
    found = MatryoshkaLoss(CONFIG, dims=[2, 4], dimension=8)(embeddings, batch)
    (gradient,) = torch.autograd.grad(found.value, embeddings)
    parts = [BatchLoss(CONFIG, dimension=dim)(embeddings[:, :dim], batch) for dim in (2, 4, 8)]
    torch.testing.assert_close(found.value, sum(part.value for part in parts))
    torch.testing.assert_close(gradient, torch.autograd.grad(sum(part.value for part in parts), embeddings)[0])
    assert replace(found, value=parts[-1].value) == parts[-1]


def test_the_gradient_is_that_of_finite_differences(batch):
    loss = MatryoshkaLoss(CONFIG, dims=[2, 5], dimension=8)
    assert torch.autograd.gradcheck(lambda embeddings: loss(embeddings, batch).value, (rows(batch),))


@pytest.mark.parametrize("dims", [[0], [9]])
def test_dims_that_a_vector_does_not_have_are_refused(dims):
    with pytest.raises(ValueError, match="within 1 and 8"):
        MatryoshkaLoss(CONFIG, dims=dims, dimension=8)


@pytest.mark.parametrize("loss", [{"memory_size": 8}, {"temperature": "learnable"}], ids=str)
def test_a_trainer_trains_prefixes_with_memory_and_temperature(encoder, data, config, loss):
    config = replace(config, loss=replace(config.loss, **loss), matryoshka_dims=(4, 16))
    reports = []
    trainer = Trainer(encoder, [data], config)
    trainer.run(on_step=reports.append, should_stop=lambda: False)
    assert len(reports) == trainer.total_steps
    assert trainer.loss.dims == [4, 16, 32]
    again = Trainer(encoder, [data], config)
    again.load_state_dict(trainer.state_dict())
    assert again.loss.loss.temperature == trainer.loss.loss.temperature
