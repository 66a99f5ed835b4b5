from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning import losses as pml
from torch import Tensor

from tests.workers.training.pair_by_pair import Batch, definition
from tests.workers.training.pair_by_pair import random_batch as random_pairs
from workers.training.losses import (
    ContrastiveLoss,
    LossStatistics,
    NonFiniteEmbeddingsError,
    NTXentLoss,
    SupConLoss,
    pair_weights,
)

LOSSES = [NTXentLoss, SupConLoss]
REDUCTIONS = ["pair", "anchor", "class"]
FEW_EXAMPLES = settings(max_examples=40, deadline=None)

pytestmark = pytest.mark.parametrize("memory", ["dense", "tiled"])


def on_circle(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Six unit vectors with three, two and one of a label."""
    angles = torch.deg2rad(torch.tensor([0, 10, 20, 50, 60, 80], dtype=torch.float64))
    embeddings = torch.stack([angles.cos(), angles.sin()], dim=1).to(dtype)
    return embeddings.requires_grad_(), torch.tensor([0, 0, 0, 1, 1, 2])


def random_batch(seed: int, n: int = 12, d: int = 5, labels: int = 4) -> tuple[Tensor, Tensor]:
    batch = random_pairs(seed, n, d, labels)
    return batch.embeddings, batch.labels


def value_of(loss: ContrastiveLoss, batch: Batch) -> Tensor:
    contents = {"content_ids": batch.content_ids, "ref_content_ids": batch.ref_content_ids}
    return loss(batch.embeddings, batch.labels, batch.ref_emb, batch.ref_labels, **contents)


def relative_error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact.double()).norm() / exact.double().norm())


# Reference values


def test_known_values_and_gradients_on_the_circle(memory):
    for kind, known, norm in (
        (NTXentLoss, 0.298143100644, 1.2827954301),
        (SupConLoss, 0.720060445082, 1.1248548001),
    ):
        embeddings, labels = on_circle()
        value = kind(0.1, memory)(embeddings, labels)
        value.backward()
        assert value.item() == pytest.approx(known, abs=1e-12)
        assert embeddings.grad.norm().item() == pytest.approx(norm, abs=1e-10)


def test_known_value_averaged_by_anchor(memory):
    assert NTXentLoss(0.1, memory, "anchor")(*on_circle()).item() == pytest.approx(0.352942415717, abs=1e-12)


def test_the_oracle_knows_the_published_values_of_its_own(memory):
    batch = Batch(*on_circle())
    assert definition(batch, 0.1, "ntxent", "pair").item() == pytest.approx(0.298143100644, abs=1e-12)
    assert definition(batch, 0.1, "ntxent", "anchor").item() == pytest.approx(0.352942415717, abs=1e-12)
    assert definition(batch, 0.1, "supcon", "anchor").item() == pytest.approx(0.720060445082, abs=1e-12)


def test_with_two_rows_a_label_both_losses_are_one(memory):
    torch.manual_seed(0)
    embeddings, labels = torch.randn(6, 100, dtype=torch.float64), torch.tensor([0, 1, 0, 3, 3, 1])
    for kind, reduction in itertools.product(LOSSES, REDUCTIONS):
        value = kind(0.07, memory, reduction)(embeddings, labels).item()
        assert value == pytest.approx(3.143318995067249, abs=1e-14)


@pytest.mark.parametrize("temperature", [0.01, 0.07, 1.0])
@pytest.mark.parametrize("n", [1, 2, 7])
def test_views_that_all_point_one_way_cost_log_of_2n_minus_1(n, temperature, memory):
    embeddings = torch.tensor([[3.0, 4.0]], dtype=torch.float64).repeat(2 * n, 1)
    for kind in LOSSES:
        value = kind(temperature, memory)(embeddings, torch.arange(n).repeat(2))
        assert value.item() == pytest.approx(math.log(2 * n - 1), abs=1e-12)


# The definition, pair by pair


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("references", [None, 5])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("contents", [None, 3])
@pytest.mark.parametrize("labels", [1, 3, 6])
def test_equals_the_definition(kind, reduction, references, symmetric, contents, labels, memory):
    batch = random_pairs(seed=labels, n=8, d=3, labels=labels, references=references, contents=contents)
    value = value_of(kind(0.1, memory, reduction, symmetric, tile_size=3), batch)
    expected = definition(batch, 0.1, kind.objective, reduction, symmetric=symmetric)
    assert value.item() == pytest.approx(expected.item(), abs=1e-12)
    ours, theirs = (torch.autograd.grad(each, batch.leaves) for each in (value, expected))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-11)


def test_other_positives_are_in_the_denominator_of_supcon_only(memory):
    # Three equal rows and a negative at a right angle: for NT-Xent each pair costs as if there were no third.
    rows = torch.tensor([[1.0, 0, 0], [1, 0, 0], [1, 0, 0], [0, 0, 1]], dtype=torch.float64)
    labels = torch.tensor([0, 0, 0, 1])
    assert NTXentLoss(1.0, memory)(rows, labels).item() == pytest.approx(math.log1p(math.exp(-1)), abs=1e-12)
    assert SupConLoss(1.0, memory)(rows, labels).item() == pytest.approx(math.log(2 + math.exp(-1)), abs=1e-12)


def test_by_class_a_large_class_counts_as_much_as_a_small_one(memory):
    # Nine rows in one direction and two that differ: the mean of 0-ish and large is half of the large.
    rows = torch.cat([torch.tensor([[1.0, 0, 0]]).repeat(9, 1), torch.tensor([[0, 1.0, 0], [0, 0, 1.0]])])
    labels = torch.tensor([0] * 9 + [1] * 2)
    by_class = NTXentLoss(0.1, memory, "class").with_statistics(rows.double(), labels)
    easy, hard = math.log1p(2 * math.exp(-10)), math.log1p(9)
    assert by_class.value.item() == pytest.approx((easy + hard) / 2, abs=1e-9)
    by_pair = NTXentLoss(0.1, memory, "pair")(rows.double(), labels).item()
    assert by_pair == pytest.approx((72 * easy + 2 * hard) / 74, abs=1e-9)


def test_own_weights_take_the_place_of_a_reduction(memory):
    embeddings, labels = random_batch(seed=4)
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


# References


def test_the_same_rows_as_references_are_their_own_positives(memory):
    embeddings, labels = random_batch(seed=1)
    batch = Batch(embeddings, labels, embeddings.detach().clone(), labels.clone())
    expected = definition(batch, 0.1, "ntxent", "pair").item()
    # The same objects or equal ones: it is the values that count.
    assert NTXentLoss(0.1, memory)(embeddings, labels, embeddings, labels).item() == pytest.approx(expected, abs=1e-12)
    assert value_of(NTXentLoss(0.1, memory), batch).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("kind", LOSSES)
def test_both_directions_are_the_mean_of_each(kind, memory):
    batch = random_pairs(seed=6, references=7, contents=5)
    there, back = (value_of(kind(0.1, memory), each) for each in (batch, batch.turned()))
    both = value_of(kind(0.1, memory, symmetric=True), batch)
    assert both.item() == pytest.approx((there + back).item() / 2, abs=1e-13)
    assert value_of(kind(0.1, memory, symmetric=True), batch.turned()).item() == pytest.approx(both.item(), abs=1e-13)


def test_without_references_both_directions_are_one(memory):
    embeddings, labels = random_batch(seed=6)
    assert torch.equal(
        NTXentLoss(memory=memory, symmetric=True)(embeddings, labels), NTXentLoss(memory=memory)(embeddings, labels)
    )


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_anchors_among_the_references_are_not_their_own_positives(kind, reduction, memory):
    embeddings, labels = random_batch(seed=8)
    loss = kind(0.1, memory, reduction, tile_size=5)
    expected = loss(embeddings, labels)
    found = loss(embeddings, labels, embeddings, labels, anchor_offset=0)
    assert found.item() == pytest.approx(expected.item(), abs=1e-13)
    torch.testing.assert_close(
        torch.autograd.grad(found, embeddings)[0], torch.autograd.grad(expected, embeddings)[0], atol=1e-12, rtol=1e-11
    )


@pytest.mark.parametrize("kind", LOSSES)
def test_a_batch_in_parts_has_the_gradient_of_the_whole(kind, memory):
    embeddings, labels = random_batch(seed=9)
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
    embeddings, labels = random_batch(seed=2)
    expected = NTXentLoss(memory=memory)(embeddings, labels)
    assert torch.equal(NTXentLoss(memory=memory)(embeddings, labels, content_ids=labels + 100), expected)


def test_with_one_content_there_are_no_negatives(memory):
    embeddings, labels = random_batch(seed=2)
    result = NTXentLoss(memory=memory).with_statistics(embeddings, labels, content_ids=torch.full((12,), -1))
    assert without_gradient(result, embeddings)
    assert result.anchors_without_negatives == 12
    assert result.negative_cosine is None


# A temperature that is learned


@pytest.mark.parametrize("kind", LOSSES)
def test_the_gradient_of_a_learned_temperature(kind, memory):
    embeddings, labels = random_batch(seed=3)
    loss = kind(0.2, memory, learnable_temperature=True).double()
    loss(embeddings, labels).backward()
    batch, step = Batch(embeddings.detach(), labels), 1e-5
    around = [definition(batch, 0.2 * math.exp(move), kind.objective, loss.reduction) for move in (step, -step)]
    assert loss.log_temperature.grad.item() == pytest.approx((around[0] - around[1]).item() / (2 * step), rel=1e-6)
    assert loss.temperature == pytest.approx(0.2, rel=1e-6)
    assert list(dict(loss.named_parameters())) == ["log_temperature"]


def test_a_learned_temperature_stays_within_its_bounds_and_comes_back(memory):
    # Positives nearer than negatives want τ lower; the other way round, higher.
    rows = torch.tensor([[1.0, 0], [1, 0.1], [0, 1], [0.1, 1]])
    near, far = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    loss = NTXentLoss(0.06, memory, learnable_temperature=True, temperature_bounds=(0.05, 0.5))
    optimizer = torch.optim.SGD(loss.parameters(), lr=1.0)

    def descend(labels: Tensor) -> None:
        for _ in range(200):
            optimizer.zero_grad()
            loss(rows, labels).backward()
            optimizer.step()

    descend(far)
    assert loss.temperature == pytest.approx(0.5)
    with torch.no_grad():
        loss.log_temperature.fill_(math.log(0.04))  # below the lower bound
    loss.zero_grad()
    loss(rows, near).backward()
    assert loss.log_temperature.grad.item() == 0  # it would lead further out
    loss(rows, far).backward()
    assert loss.log_temperature.grad.item() < 0  # it leads back


def test_a_fixed_temperature_is_no_parameter(memory):
    assert list(NTXentLoss(memory=memory).parameters()) == []


# PyTorch Metric Learning, where it is right


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("references", [None, 9])
def test_equals_pytorch_metric_learning(seed, references, memory):
    batch = random_pairs(seed, references=references)
    arguments = {} if references is None else {"ref_emb": batch.ref_emb, "ref_labels": batch.ref_labels}
    for ours, theirs in (
        (NTXentLoss(0.1, memory), pml.NTXentLoss(temperature=0.1)),
        (SupConLoss(0.1, memory), pml.SupConLoss(temperature=0.1)),
    ):
        value, expected = value_of(ours, batch), theirs(batch.embeddings, batch.labels, **arguments)
        assert value.item() == pytest.approx(expected.item(), rel=1e-9)
        for one, other in zip(*(torch.autograd.grad(each, batch.leaves) for each in (value, expected)), strict=True):
            torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-7)


def test_rows_on_a_circle_against_pairs_counted_by_hand(memory):
    # After PyTorch Metric Learning's own test: two labels with a pair each and a row alone.
    degrees = torch.tensor([0.0, 20, 40, 60, 80], dtype=torch.float64)
    rows = torch.stack([degrees.deg2rad().cos(), degrees.deg2rad().sin()], dim=1)
    labels = torch.tensor([0, 0, 1, 1, 2])
    negatives = {0: (2, 3, 4), 1: (2, 3, 4), 2: (0, 1, 4), 3: (0, 1, 4)}

    def logit(i: int, j: int) -> float:
        return math.cos(math.radians(abs(degrees[i] - degrees[j]))) / 0.1

    total = 0.0
    for i, p in ((0, 1), (1, 0), (2, 3), (3, 2)):
        numerator = math.exp(logit(i, p))
        total -= math.log(numerator / (numerator + sum(math.exp(logit(i, n)) for n in negatives[i])))
    for dtype in (torch.float64, torch.float32, torch.float16):
        value = NTXentLoss(0.1, memory)(rows.to(dtype), labels)
        assert value.item() == pytest.approx(total / 4, rel=1e-9 if dtype == torch.float64 else 2e-2)


def test_the_reference_gives_up_on_hard_positives_where_this_does_not(memory):
    rows = torch.tensor([[1.0, 0], [-1, 0], [1, 0], [-1, 0]])
    labels = torch.tensor([0, 0, 1, 1])
    assert pml.NTXentLoss(temperature=0.02)(rows, labels).item() < 100
    assert NTXentLoss(0.02, memory)(rows, labels).item() == pytest.approx(100, rel=1e-6)


# Derivatives


@pytest.mark.parametrize("kind", LOSSES)
def test_dense_may_be_differentiated_twice(kind, memory):
    embeddings, labels = random_batch(seed=3, n=8)
    check = torch.autograd.gradgradcheck
    if memory == "dense":
        assert check(kind(0.5, memory), (embeddings, labels))
    else:
        with pytest.raises(RuntimeError, match="no second derivative"):
            check(kind(0.5, memory), (embeddings, labels))


# What must not matter


@FEW_EXAMPLES
@given(seed=st.integers(0, 10_000), exponents=st.lists(st.integers(-8, 25), min_size=12, max_size=12))
def test_scaling_rows_changes_nothing(seed, exponents, memory):
    embeddings, labels = random_batch(seed)
    scales = torch.tensor([10.0**exponent for exponent in exponents], dtype=torch.float64)[:, None]
    scaled = (embeddings * scales).float()
    value = NTXentLoss(memory=memory)(scaled, labels).item()
    assert value == pytest.approx(NTXentLoss(memory=memory)(embeddings, labels).item(), rel=1e-5, abs=1e-5)


@FEW_EXAMPLES
@given(seed=st.integers(0, 10_000), order=st.permutations(range(12)))
def test_the_order_of_rows_changes_nothing(seed, order, memory):
    embeddings, labels = random_batch(seed)
    value = NTXentLoss(memory=memory)(embeddings, labels).item()
    assert NTXentLoss(memory=memory)(embeddings[order], labels[order]).item() == pytest.approx(value, abs=1e-12)


@FEW_EXAMPLES
@given(
    seed=st.integers(0, 10_000),
    names=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=4, max_size=4, unique=True),
)
def test_only_equality_of_labels_matters(seed, names, memory):
    embeddings, labels = random_batch(seed)
    renamed = torch.tensor(names)[labels]
    value = NTXentLoss(memory=memory)(embeddings, labels).item()
    assert NTXentLoss(memory=memory)(embeddings, renamed).item() == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_any_integer_type_labels(dtype, memory):
    embeddings, labels = on_circle()
    assert (
        NTXentLoss(memory=memory)(embeddings, labels.to(dtype)).item()
        == NTXentLoss(memory=memory)(embeddings, labels).item()
    )


def test_labels_may_be_one_object_used_twice(memory):
    embeddings, labels = random_batch(seed=1)
    before = labels.clone()
    NTXentLoss(memory=memory)(embeddings, labels)
    assert torch.equal(labels, before)


# Precision


@pytest.mark.parametrize("temperature", [0.02, 0.07])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_input_keeps_the_gradient(dtype, temperature, memory):
    half = torch.randn(16, 32, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    exact = half.detach().double().requires_grad_()
    labels = torch.arange(8).repeat(2)
    value = NTXentLoss(temperature, memory)(half, labels)
    value.backward()
    NTXentLoss(temperature, memory)(exact, labels).backward()
    assert value.dtype == torch.float32
    # The gradient is handed back in the input's own type, whose rounding is all that may be lost.
    rounding = torch.finfo(dtype).eps
    assert (half.grad.double() - exact.grad).norm() < rounding * exact.grad.norm()


def test_autocast_does_not_reach_inside(memory):
    embeddings = torch.randn(16, 32, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(8).repeat(2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = NTXentLoss(memory=memory)(embeddings, labels)
    assert torch.equal(inside, NTXentLoss(memory=memory)(embeddings, labels))


@pytest.mark.parametrize("temperature", [0.005, 0.01, 0.02])
def test_hard_positives_at_low_temperature(temperature, memory):
    # A positive at cosine −1, a negative at 1: logits 2/τ apart, more than exp can hold in float32.
    embeddings = torch.tensor([[1.0, 0], [-1, 0], [1, 0], [-1, 0]]).requires_grad_()
    value = NTXentLoss(temperature, memory)(embeddings, torch.tensor([0, 0, 1, 1]))
    value.backward()
    assert value.item() == pytest.approx(2 / temperature, rel=1e-6)
    assert embeddings.grad.isfinite().all()


def test_easy_positives_keep_their_tiny_loss(memory):
    embeddings = torch.tensor([[1.0, 0], [1, 0], [-1, 0], [-1, 0]])
    value = NTXentLoss(0.05, memory)(embeddings, torch.tensor([0, 0, 1, 1]))
    assert value.item() == pytest.approx(math.log1p(2 * math.exp(-40)), rel=1e-5)


@pytest.mark.parametrize("temperature", [0.01, 0.02, 0.07])
def test_orthogonal_and_antipodal_classes_have_finite_gradients(temperature, memory):
    axes = torch.eye(4).repeat_interleave(2, dim=0)
    for embeddings in (axes, torch.cat([axes, -axes])):
        leaf = embeddings.clone().requires_grad_()
        NTXentLoss(temperature, memory)(leaf, torch.arange(len(leaf) // 2).repeat_interleave(2)).backward()
        assert leaf.grad.isfinite().all()


# Edges


def test_one_positive_and_one_negative_pair_are_enough(memory):
    rows = torch.tensor([[1.0, 0], [0, 1], [-1, 0]], dtype=torch.float64)
    value = NTXentLoss(1.0, memory)(rows, torch.tensor([0, 0, 1]))
    expected = (math.log1p(math.exp(-1)) + math.log1p(math.exp(0))) / 2
    assert value.item() == pytest.approx(expected, abs=1e-12)


def without_gradient(result: LossStatistics, embeddings: Tensor) -> bool:
    result.value.backward()
    return result.value.item() == 0 and bool((embeddings.grad == 0).all())


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


def test_a_row_of_zeros_is_counted_and_takes_no_gradient(memory):
    embeddings, labels = on_circle(torch.float32)
    with torch.no_grad():
        embeddings[1] = 0
    result = NTXentLoss(memory=memory).with_statistics(embeddings, labels)
    result.value.backward()
    assert result.rows_without_direction == 1
    assert (embeddings.grad[1] == 0).all()
    assert embeddings.grad.isfinite().all()
    assert embeddings.grad.norm() > 0


def test_entries_that_overflow_when_squared_keep_their_direction(memory):
    embeddings, labels = on_circle(torch.float32)
    huge = NTXentLoss(memory=memory).with_statistics(embeddings * 1e37, labels)
    assert huge.rows_without_direction == 0
    assert huge.value.item() == pytest.approx(NTXentLoss(memory=memory)(embeddings, labels).item(), rel=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_rows_are_named(bad, memory):
    embeddings, labels = on_circle()
    with torch.no_grad():
        embeddings[1, 0] = bad
        embeddings[4, 1] = bad
    with pytest.raises(NonFiniteEmbeddingsError, match="row 1, 4") as caught:
        NTXentLoss(memory=memory)(embeddings, labels)
    assert caught.value.rows == [1, 4]


def test_a_long_list_of_non_finite_rows_is_cut(memory):
    with pytest.raises(NonFiniteEmbeddingsError, match="0, 1, 2, 3, 4, 5, 6, 7 and 12 more"):
        NTXentLoss(memory=memory)(torch.full((20, 2), math.nan), torch.arange(20))


@pytest.mark.parametrize("temperature", [0.0, -0.07, math.nan, math.inf])
def test_refuses_a_temperature_that_is_not_positive(temperature, memory):
    with pytest.raises(ValueError, match="temperature"):
        NTXentLoss(temperature, memory)


@pytest.mark.parametrize("eps", [-1e-9, math.nan, math.inf])
def test_refuses_a_negative_eps(eps, memory):
    with pytest.raises(ValueError, match="eps"):
        NTXentLoss(eps=eps)


@pytest.mark.parametrize("labels", [torch.zeros(5), torch.zeros(6, 1), torch.tensor(0)])
def test_refuses_labels_of_another_shape(labels, memory):
    with pytest.raises(ValueError, match=r"labels must have shape \(6,\)"):
        NTXentLoss(memory=memory)(torch.ones(6, 2), labels.long())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.complex64])
def test_refuses_labels_that_are_not_integers(dtype, memory):
    with pytest.raises(TypeError, match="labels must be integers"):
        NTXentLoss(memory=memory)(torch.ones(6, 2), torch.zeros(6, dtype=dtype))


@pytest.mark.parametrize("shape", [(6,), (6, 2, 2), (6, 0)])
def test_refuses_embeddings_that_are_no_table(shape, memory):
    with pytest.raises(ValueError, match="embeddings must have shape"):
        NTXentLoss(memory=memory)(torch.ones(shape), torch.zeros(6, dtype=torch.long))


def test_refuses_integer_embeddings(memory):
    with pytest.raises(TypeError, match="floating point"):
        NTXentLoss(memory=memory)(torch.ones(6, 2, dtype=torch.long), torch.zeros(6, dtype=torch.long))


# Statistics


@FEW_EXAMPLES
@given(seed=st.integers(0, 10_000), labels=st.integers(1, 12))
def test_statistics_are_those_of_the_pairs(seed, labels, memory):
    embeddings, names = random_batch(seed, labels=labels)
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


def test_both_call_forms_agree_to_the_bit(memory):
    embeddings, labels = random_batch(seed=2)
    with_statistics = NTXentLoss(memory=memory).with_statistics(embeddings, labels).value
    plain = NTXentLoss(memory=memory)(embeddings, labels)
    assert torch.equal(plain, with_statistics)
    (first,) = torch.autograd.grad(plain, embeddings)
    (second,) = torch.autograd.grad(with_statistics, embeddings)
    assert torch.equal(first, second)


def test_its_repr_says_how_it_was_made(memory):
    how = f"memory={memory}, reduction=pair, symmetric=False, eps=1e-30"
    assert repr(NTXentLoss(0.05, memory)) == f"NTXentLoss(temperature=0.05, {how})"
    assert "temperature=0.05 (learnable)" in repr(SupConLoss(0.05, memory, learnable_temperature=True))


# More edges


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("scale", [1e-20, 1e25])
def test_rows_of_any_norm_cost_the_same(kind, scale, memory):
    embeddings, labels = (values.detach() for values in random_batch(seed=1))
    leaf = (embeddings.float() * scale).requires_grad_()
    exact = embeddings.clone().requires_grad_()
    value, expected = kind(memory=memory)(leaf, labels), kind(memory=memory)(exact, labels)
    value.backward()
    expected.backward()
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    # The gradient is that much larger or smaller, as it must be.
    assert relative_error(leaf.grad.double() * scale, exact.grad) < 1e-4


@pytest.mark.parametrize("kind", LOSSES)
def test_one_dimension_is_enough(kind, memory):
    rows = torch.tensor([[2.0], [3.0], [-1.0], [5.0]], dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 0, 1, 1])
    value = kind(0.5, memory)(rows, labels)
    assert value.item() == pytest.approx(definition(Batch(rows, labels), 0.5, "ntxent", "pair").item(), abs=1e-12)
    value.backward()
    assert rows.grad.abs().max() < 1e-12  # a direction in one dimension has no neighbour


def test_a_label_of_minus_one_is_a_label_like_others(memory):
    embeddings, labels = random_batch(seed=7)
    value = NTXentLoss(memory=memory)(embeddings, labels)
    assert NTXentLoss(memory=memory)(embeddings, labels - 1).item() == pytest.approx(value.item(), abs=1e-13)


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize(("n", "references"), [(0, 0), (0, 3), (3, 0), (1, 1)])
def test_nothing_to_compare_with(kind, n, references, memory):
    batch = random_pairs(seed=0, n=n, labels=1, references=references)
    result = kind(memory=memory, symmetric=True).with_statistics(
        batch.embeddings, batch.labels, batch.ref_emb, batch.ref_labels
    )
    gradients = torch.autograd.grad(result.value, batch.leaves)
    assert result.value.item() == pytest.approx(0, abs=1e-12)
    assert all(gradient.abs().sum() < 1e-12 for gradient in gradients)
    assert result.pairs == 2 * n * references


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("temperature", [0.02, 0.07])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_loses_less_than_a_thousandth_of_the_gradient(kind, reduction, temperature, dtype, memory):
    rounded = torch.randn(48, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    labels = torch.arange(48) % 20
    # Rounding the gradient to the input's own type is the caller's affair: a float32 leaf sees it before that.
    leaf, exact = rounded.float().requires_grad_(), rounded.double().requires_grad_()
    value, expected = (kind(temperature, memory, reduction)(rows, labels) for rows in (leaf.to(dtype), exact))
    direct = kind(temperature, memory, reduction)(leaf, labels)
    assert torch.equal(value, direct)
    direct.backward()
    expected.backward()
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    assert relative_error(leaf.grad, exact.grad) < 1e-4


def test_a_half_precision_reference_is_no_worse(memory):
    batch = random_pairs(seed=2, references=6)
    value = NTXentLoss(memory=memory)(
        batch.embeddings.bfloat16(), batch.labels, batch.ref_emb.bfloat16(), batch.ref_labels
    )
    assert value.dtype == torch.float32
    mixed = NTXentLoss(memory=memory)(batch.embeddings, batch.labels, batch.ref_emb.bfloat16(), batch.ref_labels)
    assert mixed.dtype == torch.float64


def test_a_non_finite_reference_is_named_as_one(memory):
    batch = random_pairs(seed=2, references=6)
    with torch.no_grad():
        batch.ref_emb[3, 1] = math.inf
    with pytest.raises(NonFiniteEmbeddingsError, match="The references hold NaN or infinity in row 3"):
        value_of(NTXentLoss(memory=memory), batch)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"memory": "sparse"}, "memory must be one of auto, dense, tiled"),
        ({"reduction": "mean"}, "reduction must be one of pair, anchor, class"),
        ({"tile_size": 0}, "tile_size"),
        ({"temperature": 5.0, "learnable_temperature": True}, "within its bounds"),
    ],
)
def test_refuses_unknown_options(options, said, memory):
    with pytest.raises(ValueError, match=said):
        NTXentLoss(**{"memory": memory, **options})


ROWS, LABELS = torch.ones(3, 2), torch.tensor([0, 0, 1])


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"labels": LABELS.to("meta")}, ValueError, "labels must be on cpu"),
        ({"ref_emb": ROWS}, ValueError, "go together"),
        ({"ref_labels": LABELS}, ValueError, "go together"),
        ({"ref_emb": torch.ones(3, 4), "ref_labels": LABELS}, ValueError, "width"),
        ({"ref_emb": ROWS.to("meta"), "ref_labels": LABELS}, ValueError, "device"),
        ({"ref_emb": ROWS, "ref_labels": LABELS[:2]}, ValueError, r"ref_labels must have shape \(3,\)"),
        ({"ref_emb": ROWS, "ref_labels": LABELS.float()}, TypeError, "ref_labels must be integers"),
        ({"content_ids": LABELS[:1]}, ValueError, "content_ids must have shape"),
        ({"content_ids": LABELS, "ref_emb": ROWS, "ref_labels": LABELS}, ValueError, "ref_content_ids go together"),
        ({"ref_content_ids": LABELS}, ValueError, "ref_content_ids go together"),
        ({"anchor_offset": 0}, ValueError, "anchor_offset"),
        ({"anchor_offset": 1, "ref_emb": ROWS, "ref_labels": LABELS}, ValueError, "labels of the embeddings"),
        ({"anchor_weights": torch.tensor([1.0, -1, 0])}, ValueError, "anchor_weights"),
        ({"anchor_weights": torch.ones(2)}, ValueError, "anchor_weights must have shape"),
    ],
)
def test_refuses_arguments_that_do_not_fit(arguments: dict[str, Any], error, said, memory):
    with pytest.raises(error, match=said):
        NTXentLoss(memory=memory)(ROWS, **{"labels": LABELS, **arguments})


@FEW_EXAMPLES
@given(seed=st.integers(0, 10_000), references=st.none() | st.integers(1, 9), contents=st.none() | st.integers(1, 6))
def test_statistics_with_references_and_contents_are_those_of_the_pairs(seed, references, contents, memory):
    batch = random_pairs(seed, references=references, contents=contents)
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


@pytest.fixture
def flushed() -> Iterator[None]:
    """Subnormal numbers are 0, as on many GPUs."""
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor keeps them")
    yield
    torch.set_flush_denormal(False)


def test_the_largest_numbers_keep_their_direction_where_subnormal_ones_are_flushed(flushed, memory):
    embeddings, labels = on_circle(torch.float32)
    result = NTXentLoss(memory=memory).with_statistics(embeddings.detach() * 3e38, labels)
    assert result.rows_without_direction == 0
    assert result.value.item() == pytest.approx(NTXentLoss(memory=memory)(embeddings, labels).item(), rel=1e-5)
