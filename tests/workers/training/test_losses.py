from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning import losses as pml
from torch import Tensor

from tests.workers.training.loss_batches import LOSSES, REDUCTIONS, on_circle, random_rows, value_of
from tests.workers.training.pair_by_pair import Batch, definition, random_batch
from workers.training.losses import NTXentLoss, SupConLoss

FEW_EXAMPLES = settings(max_examples=40, deadline=None)

pytestmark = pytest.mark.parametrize("memory", ["dense", "tiled"])


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
    batch = random_batch(seed=labels, n=8, d=3, labels=labels, references=references, contents=contents)
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


# A temperature that is learned


@pytest.mark.parametrize("kind", LOSSES)
def test_the_gradient_of_a_learned_temperature(kind, memory):
    embeddings, labels = random_rows(seed=3)
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


@pytest.mark.parametrize("kind", LOSSES)
def test_of_frozen_embeddings_the_temperature_still_learns(kind, memory):
    batch = random_batch(seed=3, references=7)
    gradients = []
    for frozen in (False, True):
        loss = kind(0.2, memory, symmetric=True, learnable_temperature=True).double()
        rows, refs = (leaf.detach() if frozen else leaf for leaf in batch.leaves)
        loss(rows, batch.labels, refs, batch.ref_labels).backward()
        gradients.append(loss.log_temperature.grad.item())
    assert gradients[1] == pytest.approx(gradients[0], rel=1e-12)
    assert abs(gradients[1]) > 0.01


def test_a_fixed_temperature_is_no_parameter(memory):
    assert list(NTXentLoss(memory=memory).parameters()) == []


# PyTorch Metric Learning, where it is right


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("references", [None, 9])
def test_equals_pytorch_metric_learning(seed, references, memory):
    batch = random_batch(seed, references=references)
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
    embeddings, labels = random_rows(seed=3, n=8)
    check = torch.autograd.gradgradcheck
    if memory == "dense":
        assert check(kind(0.5, memory), (embeddings, labels))
    else:
        with pytest.raises(RuntimeError, match="no second derivative"):
            check(kind(0.5, memory), (embeddings, labels))


def test_in_inference_mode_it_has_a_value(memory):
    embeddings, labels = on_circle()
    with torch.inference_mode():
        result = NTXentLoss(0.1, memory, learnable_temperature=True).double().with_statistics(embeddings, labels)
    assert result.value.item() == pytest.approx(0.298143100644, abs=1e-7)


# What must not matter


@FEW_EXAMPLES
@given(
    kind=st.sampled_from(LOSSES),
    seed=st.integers(0, 10_000),
    exponents=st.lists(st.integers(-8, 25), min_size=12, max_size=12),
)
def test_scaling_rows_changes_nothing(kind, seed, exponents, memory):
    embeddings, labels = random_rows(seed)
    scales = torch.tensor([10.0**exponent for exponent in exponents], dtype=torch.float64)[:, None]
    scaled = (embeddings * scales).float()
    value = kind(memory=memory)(scaled, labels).item()
    assert value == pytest.approx(kind(memory=memory)(embeddings, labels).item(), rel=1e-5, abs=1e-5)


@FEW_EXAMPLES
@given(kind=st.sampled_from(LOSSES), seed=st.integers(0, 10_000), order=st.permutations(range(12)))
def test_the_order_of_rows_changes_nothing(kind, seed, order, memory):
    embeddings, labels = random_rows(seed)
    value = kind(memory=memory)(embeddings, labels).item()
    assert kind(memory=memory)(embeddings[order], labels[order]).item() == pytest.approx(value, abs=1e-12)


@FEW_EXAMPLES
@given(
    kind=st.sampled_from(LOSSES),
    seed=st.integers(0, 10_000),
    names=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=4, max_size=4, unique=True),
)
def test_only_equality_of_labels_matters(kind, seed, names, memory):
    embeddings, labels = random_rows(seed)
    renamed = torch.tensor(names)[labels]
    value = kind(memory=memory)(embeddings, labels).item()
    assert kind(memory=memory)(embeddings, renamed).item() == pytest.approx(value, abs=1e-12)


# Precision


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


@pytest.mark.parametrize("kind", LOSSES)
def test_one_dimension_is_enough(kind, memory):
    rows = torch.tensor([[2.0], [3.0], [-1.0], [5.0]], dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 0, 1, 1])
    value = kind(0.5, memory)(rows, labels)
    assert value.item() == pytest.approx(definition(Batch(rows, labels), 0.5, "ntxent", "pair").item(), abs=1e-12)
    value.backward()
    assert rows.grad.abs().max() < 1e-12  # a direction in one dimension has no neighbour


def test_a_label_of_minus_one_is_a_label_like_others(memory):
    embeddings, labels = random_rows(seed=7)
    value = NTXentLoss(memory=memory)(embeddings, labels)
    assert NTXentLoss(memory=memory)(embeddings, labels - 1).item() == pytest.approx(value.item(), abs=1e-13)


# What it is made with


def test_its_repr_says_how_it_was_made(memory):
    how = f"memory={memory}, reduction=pair, symmetric=False, eps=1e-30"
    assert repr(NTXentLoss(0.05, memory)) == f"NTXentLoss(temperature=0.05, {how})"
    assert "temperature=0.05 (learnable)" in repr(SupConLoss(0.05, memory, learnable_temperature=True))


@pytest.mark.parametrize("temperature", [0.0, -0.07, math.nan, math.inf])
def test_refuses_a_temperature_that_is_not_positive(temperature, memory):
    with pytest.raises(ValueError, match="temperature"):
        NTXentLoss(temperature, memory)


@pytest.mark.parametrize("eps", [-1e-9, math.nan, math.inf])
def test_refuses_a_negative_eps(eps, memory):
    with pytest.raises(ValueError, match="eps"):
        NTXentLoss(eps=eps)


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
