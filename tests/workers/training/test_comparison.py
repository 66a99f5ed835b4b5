from __future__ import annotations

import math

import pytest
import torch

from tests.workers.training.loss_batches import LOSSES, REDUCTIONS, random_rows, value_of
from tests.workers.training.pair_by_pair import Batch, definition, random_batch
from workers.training.losses import NTXentLoss, pair_weights

pytestmark = pytest.mark.parametrize("memory", ["dense", "tiled"])


# References


def test_the_same_rows_as_references_are_their_own_positives(memory):
    embeddings, labels = random_rows(seed=1)
    batch = Batch(embeddings, labels, embeddings.detach().clone(), labels.clone())
    expected = definition(batch, 0.1, "ntxent", "pair").item()
    # The same objects or equal ones: it is the values that count.
    assert NTXentLoss(0.1, memory)(embeddings, labels, embeddings, labels).item() == pytest.approx(expected, abs=1e-12)
    assert value_of(NTXentLoss(0.1, memory), batch).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("kind", LOSSES)
def test_both_directions_are_the_mean_of_each(kind, memory):
    batch = random_batch(seed=6, references=7, contents=5)
    there, back = (value_of(kind(0.1, memory), each) for each in (batch, batch.turned()))
    both = value_of(kind(0.1, memory, symmetric=True), batch)
    assert both.item() == pytest.approx((there + back).item() / 2, abs=1e-13)
    assert value_of(kind(0.1, memory, symmetric=True), batch.turned()).item() == pytest.approx(both.item(), abs=1e-13)


def test_without_references_both_directions_are_one(memory):
    embeddings, labels = random_rows(seed=6)
    assert torch.equal(
        NTXentLoss(memory=memory, symmetric=True)(embeddings, labels), NTXentLoss(memory=memory)(embeddings, labels)
    )


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_anchors_among_the_references_are_not_their_own_positives(kind, reduction, memory):
    embeddings, labels = random_rows(seed=8)
    loss = kind(0.1, memory, reduction, tile_size=5)
    expected = loss(embeddings, labels)
    found = loss(embeddings, labels, embeddings, labels, anchor_offset=0)
    assert found.item() == pytest.approx(expected.item(), abs=1e-13)
    torch.testing.assert_close(
        torch.autograd.grad(found, embeddings)[0], torch.autograd.grad(expected, embeddings)[0], atol=1e-12, rtol=1e-11
    )


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("contents", [None, 3])
@pytest.mark.parametrize("tile", [1, 4, 50])
def test_anchors_in_the_midst_of_other_references(kind, reduction, contents, tile, memory):
    own = random_batch(seed=3, n=9, d=3, contents=contents)
    before, behind = (random_batch(seed=seed, n=n, d=3, contents=contents) for seed, n in ((4, 4), (5, 6)))
    joined = [before, own, behind]
    batch = Batch(
        own.embeddings,
        own.labels,
        torch.cat([part.embeddings for part in joined]),
        torch.cat([part.labels for part in joined]),
        own.content_ids,
        torch.cat([part.content_ids for part in joined]) if contents else None,
        anchor_offset=4,
    )
    value = value_of(kind(0.1, memory, reduction, tile_size=tile), batch)
    expected = definition(batch, 0.1, kind.objective, reduction)
    assert value.item() == pytest.approx(expected.item(), abs=1e-12)
    gradients = [torch.autograd.grad(each, [part.embeddings for part in joined]) for each in (value, expected)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-11)


@pytest.mark.parametrize("kind", LOSSES)
def test_a_batch_in_parts_has_the_gradient_of_the_whole(kind, memory):
    embeddings, labels = random_rows(seed=9)
    loss = kind(0.1, memory, tile_size=4)
    positives = (labels[:, None] == labels).sum(dim=1) - 1
    weights = pair_weights(labels, 4, positives, loss.reduction, torch.float64)
    parts = [
        loss(embeddings[a:b], labels[a:b], embeddings, labels, anchor_offset=a, anchor_weights=weights[a:b])
        for a, b in ((0, 5), (5, 6), (6, 12))
    ]
    expected = loss(embeddings, labels)
    torch.testing.assert_close(sum(parts), expected, atol=1e-13, rtol=0)
    torch.testing.assert_close(
        torch.autograd.grad(sum(parts), embeddings)[0], torch.autograd.grad(expected, embeddings)[0], atol=1e-12, rtol=0
    )


# Known false negatives


def test_equal_contents_are_no_negatives_of_one_another(memory):
    # Rows 1 and 2 are the same text under two labels.
    rows = torch.tensor([[1.0, 0], [0, 1], [0, 1], [-1, 0]], dtype=torch.float64)
    labels, contents = torch.tensor([0, 0, 1, 1]), torch.tensor([5, 6, 6, 7])
    value = NTXentLoss(1.0, memory)(rows, labels, content_ids=contents)
    outer = math.log1p(1 + math.exp(-1))  # rows 0 and 3: positive at 0, negatives at 0 and −1
    inner = math.log1p(1)  # rows 1 and 2: positive at 0, the one negative left at 0
    assert value.item() == pytest.approx((outer + inner) / 2, abs=1e-12)


def test_equal_contents_of_one_label_stay_positives(memory):
    embeddings, labels = random_rows(seed=2)
    expected = NTXentLoss(memory=memory)(embeddings, labels)
    assert torch.equal(NTXentLoss(memory=memory)(embeddings, labels, content_ids=labels + 100), expected)


# Weights of pairs


def test_own_weights_take_the_place_of_a_reduction(memory):
    embeddings, labels = random_rows(seed=4)
    positives = (labels[:, None] == labels).sum(dim=1) - 1
    for reduction in REDUCTIONS:
        weights = pair_weights(labels, 4, positives, reduction, torch.float64)
        expected = NTXentLoss(0.1, memory, reduction)(embeddings, labels)
        found = NTXentLoss(0.1, memory)(embeddings, labels, anchor_weights=weights)
        assert found.item() == pytest.approx(expected.item(), abs=1e-14)
    halves = sum(
        NTXentLoss(0.1, memory)(embeddings, labels, anchor_weights=weights * part)
        for part in (torch.arange(12) < 5, torch.arange(12) >= 5)
    )
    assert halves.item() == pytest.approx(expected.item(), abs=1e-14)
