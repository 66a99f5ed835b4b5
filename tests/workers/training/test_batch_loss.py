from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from workers.training.batch_loss import BatchLoss, yardstick
from workers.training.batches import Batch
from workers.training.config import LossConfig
from workers.training.losses import NTXentLoss, SupConLoss

PAIRS = Batch(
    texts=np.array([0, 1, 2, 3, 4, 5, 6, 7]),
    labels=np.array([5, 5, 9, 9, 2, 2, 7, 7]),
    asks=np.array([True, False] * 4),
    rows=4,
)
LABELS = Batch(texts=np.arange(6), labels=np.array([1, 1, 1, 0, 0, 3]), asks=np.full(6, True), rows=6)


def embeddings(batch: Batch, seed: int = 0) -> torch.Tensor:
    return torch.randn(len(batch.texts), 8, generator=torch.Generator().manual_seed(seed))


def value(config: LossConfig, batch: Batch) -> float:
    return BatchLoss(config, dimension=8)(embeddings(batch), batch).value.item()


@pytest.mark.parametrize(("name", "loss"), [("ntxent", NTXentLoss), ("supcon", SupConLoss)])
@pytest.mark.parametrize("reduction", ["pair", "anchor", "class"])
def test_it_is_the_loss_that_was_asked_for(name, loss, reduction):
    asked = value(LossConfig(name=name, temperature=0.2, reduction=reduction), LABELS)
    assert asked == pytest.approx(
        loss(0.2, reduction=reduction)(embeddings(LABELS), torch.tensor(LABELS.labels)).item()
    )


def test_by_default_every_text_is_compared_with_every_other():
    found = BatchLoss(LossConfig(temperature=0.2), dimension=8)(embeddings(PAIRS), PAIRS)
    assert found.value.item() == pytest.approx(NTXentLoss(0.2)(embeddings(PAIRS), torch.tensor(PAIRS.labels)).item())
    assert found.pairs == 8


def test_one_direction_is_cross_entropy_over_the_positives():
    # What sentence-transformers calls MultipleNegativesRankingLoss.
    anchors, positives = (torch.nn.functional.normalize(embeddings(PAIRS)[start::2], dim=1) for start in (0, 1))
    logits = anchors @ positives.T / 0.2
    expected = torch.nn.functional.cross_entropy(logits, torch.arange(4))
    assert value(LossConfig(temperature=0.2, symmetric=False), PAIRS) == pytest.approx(expected.item())
    both = (expected + torch.nn.functional.cross_entropy(logits.T, torch.arange(4))) / 2
    assert value(LossConfig(temperature=0.2, symmetric=True), PAIRS) == pytest.approx(both.item())


def test_one_text_is_never_its_own_negative():
    # Text 0 stands in two rows: as a negative of itself, with a cosine of 1, it would dominate everything.
    repeated = Batch(np.array([0, 1, 0, 2]), np.array([0, 0, 1, 1]), np.array([True, False] * 2), rows=2)
    rows = embeddings(repeated)
    rows[2] = rows[0]
    found = BatchLoss(LossConfig(temperature=0.01), dimension=8)(rows, repeated)
    with_them = NTXentLoss(0.01)(rows, torch.tensor(repeated.labels))
    assert found.value < with_them / 2


@pytest.mark.parametrize("symmetric", [None, False])
def test_a_memory_adds_the_texts_of_earlier_steps_after_the_warm_up(symmetric):
    config = LossConfig(temperature=0.2, symmetric=symmetric, memory_size=100)
    loss, alone = (
        BatchLoss(c, dimension=8, warm_up=2) for c in (config, LossConfig(temperature=0.2, symmetric=symmetric))
    )
    differences = []
    for step in range(4):
        batch = Batch(PAIRS.texts + 8 * step, PAIRS.labels + 10 * step, PAIRS.asks, PAIRS.rows)
        rows = embeddings(batch, seed=step)
        differences.append((loss(rows, batch).value - alone(rows, batch).value).item())
    assert differences[:2] == [0, 0]
    # More negatives, more loss.
    assert all(later > earlier > 0 for earlier, later in pairwise(differences[2:]))


def test_the_yardstick_forgets_and_does_not_learn():
    loss = yardstick(LossConfig(temperature="learnable", memory_size=100), dimension=8)
    values = {loss(embeddings(PAIRS), PAIRS).value.item() for _ in range(3)}
    assert values == {value(LossConfig(temperature=0.05), PAIRS)}
    assert not list(loss.parameters())
