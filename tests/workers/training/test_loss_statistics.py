from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.workers.training.loss_batches import LOSSES, on_circle, random_rows, without_gradient
from tests.workers.training.pair_by_pair import random_batch
from workers.training.losses import NTXentLoss

FEW_EXAMPLES = settings(max_examples=40, deadline=None)

pytestmark = pytest.mark.parametrize("memory", ["dense", "tiled"])


LABELS = torch.tensor([0, 0, 1])


# Batches without pairs or without negatives


def test_without_positives_it_is_zero_and_says_so(memory):
    embeddings, _ = on_circle()
    result = NTXentLoss(memory=memory).with_statistics(embeddings, torch.arange(6))
    assert without_gradient(result, embeddings)
    assert (result.pairs, result.anchors_without_positives, result.anchors_without_negatives) == (0, 6, 0)
    assert result.positive_cosine is None
    assert result.negative_cosine is not None


def test_with_one_label_it_is_zero_and_says_so(memory):
    embeddings, _ = on_circle()
    result = NTXentLoss(memory=memory).with_statistics(embeddings, torch.zeros(6, dtype=torch.long))
    assert without_gradient(result, embeddings)
    assert (result.pairs, result.anchors_without_positives, result.anchors_without_negatives) == (30, 0, 6)
    assert result.negative_cosine is None


@pytest.mark.parametrize("n", [0, 1])
def test_fewer_than_two_rows_make_no_pair(n, memory):
    embeddings = torch.ones(n, 3, requires_grad=True)
    result = NTXentLoss(memory=memory).with_statistics(embeddings, torch.zeros(n, dtype=torch.long))
    assert without_gradient(result, embeddings)
    assert result.pairs == 0


def test_with_one_content_there_are_no_negatives(memory):
    embeddings, labels = random_rows(seed=2)
    result = NTXentLoss(memory=memory).with_statistics(embeddings, labels, content_ids=torch.full((12,), -1))
    assert without_gradient(result, embeddings)
    assert result.anchors_without_negatives == 12
    assert result.negative_cosine is None


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize(("n", "references"), [(0, 0), (0, 3), (3, 0), (1, 1)])
def test_nothing_to_compare_with(kind, n, references, memory):
    batch = random_batch(seed=0, n=n, labels=1, references=references)
    result = kind(memory=memory, symmetric=True).with_statistics(
        batch.embeddings, batch.labels, batch.ref_emb, batch.ref_labels
    )
    gradients = torch.autograd.grad(result.value, batch.leaves)
    assert result.value.item() == pytest.approx(0, abs=1e-12)
    assert all(gradient.abs().sum() < 1e-12 for gradient in gradients)
    assert result.pairs == 2 * n * references


# Counts and means


@FEW_EXAMPLES
@given(seed=st.integers(0, 10_000), labels=st.integers(1, 12))
def test_statistics_are_those_of_the_pairs(seed, labels, memory):
    embeddings, names = random_rows(seed, labels=labels)
    result = NTXentLoss(0.3, memory).with_statistics(embeddings, names)
    alike = names[:, None] == names[None, :]
    positive = alike & ~torch.eye(len(names), dtype=torch.bool)
    cosines = torch.nn.functional.cosine_similarity(embeddings[:, None], embeddings[None, :], dim=2)
    assert result.pairs == positive.sum()
    assert result.anchors_without_positives == (~positive.any(dim=1)).sum()
    assert result.anchors_without_negatives == alike.all(dim=1).sum()
    assert result.temperature == 0.3
    for mean, chosen in ((result.positive_cosine, positive), (result.negative_cosine, ~alike)):
        assert mean == (pytest.approx(cosines[chosen].mean().item(), abs=1e-12) if chosen.any() else None)


@FEW_EXAMPLES
@given(seed=st.integers(0, 10_000), references=st.none() | st.integers(1, 9), contents=st.none() | st.integers(1, 6))
def test_statistics_with_references_and_contents_are_those_of_the_pairs(seed, references, contents, memory):
    batch = random_batch(seed, references=references, contents=contents)
    found = NTXentLoss(0.3, memory, symmetric=True).with_statistics(
        batch.embeddings,
        batch.labels,
        batch.ref_emb,
        batch.ref_labels,
        content_ids=batch.content_ids,
        ref_content_ids=batch.ref_content_ids,
    )
    directions = [batch] if references is None else [batch, batch.turned()]
    anchors = [(side, i) for side in directions for i in range(len(side.embeddings))]
    positives = [[side.cosine(i, p).item() for p in side.positives(i)] for side, i in anchors]
    negatives = [[side.cosine(i, n).item() for n in side.negatives(i)] for side, i in anchors]
    hits = [max(near) > max(far, default=-2) for near, far in zip(positives, negatives, strict=True) if near]
    assert found.pairs == sum(map(len, positives))
    assert found.anchors_without_positives == positives.count([])
    assert found.anchors_without_negatives == negatives.count([])
    assert found.accuracy == (sum(hits) / len(hits) if hits else None)
    for mean, by_anchor in ((found.positive_cosine, positives), (found.negative_cosine, negatives)):
        cosines = list(itertools.chain.from_iterable(by_anchor))
        assert mean == (pytest.approx(sum(cosines) / len(cosines), abs=1e-9) if cosines else None)


def test_both_call_forms_agree_to_the_bit(memory):
    embeddings, labels = random_rows(seed=2)
    with_statistics = NTXentLoss(memory=memory).with_statistics(embeddings, labels).value
    plain = NTXentLoss(memory=memory)(embeddings, labels)
    assert torch.equal(plain, with_statistics)
    (first,) = torch.autograd.grad(plain, embeddings)
    (second,) = torch.autograd.grad(with_statistics, embeddings)
    assert torch.equal(first, second)


def test_rows_without_direction_are_counted_among_references_too(memory):
    rows = torch.tensor([[0.0, 0], [1, 0]], requires_grad=True)
    result = NTXentLoss(memory=memory).with_statistics(rows, LABELS[:2], rows, LABELS[:2])
    assert result.rows_without_direction == 2
    result.value.backward()
    assert rows.grad.isfinite().all()
    assert (rows.grad[0] == 0).all()


def test_rows_without_direction_among_the_references_are_counted_once(memory):
    rows = torch.tensor([[0.0, 0], [1, 0], [0, 0]])
    result = NTXentLoss(memory=memory).with_statistics(rows[:2], LABELS[:2], rows, LABELS, anchor_offset=0)
    assert result.rows_without_direction == 2
