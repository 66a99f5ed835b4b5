from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.workers.training.loss_batches import LOSSES, REDUCTIONS, on_circle, random_rows, relative_error, value_of
from tests.workers.training.pair_by_pair import random_batch
from workers.training.losses import NonFiniteEmbeddingsError, NTXentLoss

pytestmark = pytest.mark.parametrize("memory", ["dense", "tiled"])


# Labels


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_any_integer_type_labels(dtype, memory):
    embeddings, labels = on_circle()
    assert (
        NTXentLoss(memory=memory)(embeddings, labels.to(dtype)).item()
        == NTXentLoss(memory=memory)(embeddings, labels).item()
    )


def test_labels_may_be_one_object_used_twice(memory):
    embeddings, labels = random_rows(seed=1)
    before = labels.clone()
    NTXentLoss(memory=memory)(embeddings, labels)
    assert torch.equal(labels, before)


@pytest.mark.parametrize("kind", LOSSES)
def test_rows_need_not_lie_side_by_side(kind, memory):
    embeddings, labels = random_rows(seed=5)
    dense = embeddings.detach().clone().requires_grad_()
    strided = torch.stack([dense, -dense], dim=2)[:, :, 0]
    value, expected = (kind(0.1, memory, tile_size=5)(rows, labels) for rows in (strided, embeddings))
    assert not strided.is_contiguous()
    assert value.item() == pytest.approx(expected.item(), abs=1e-13)
    torch.testing.assert_close(torch.autograd.grad(value, dense), torch.autograd.grad(expected, embeddings))


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
    batch = random_batch(seed=2, references=6)
    value = NTXentLoss(memory=memory)(
        batch.embeddings.bfloat16(), batch.labels, batch.ref_emb.bfloat16(), batch.ref_labels
    )
    assert value.dtype == torch.float32
    mixed = NTXentLoss(memory=memory)(batch.embeddings, batch.labels, batch.ref_emb.bfloat16(), batch.ref_labels)
    assert mixed.dtype == torch.float64


def test_autocast_does_not_reach_inside(memory):
    embeddings = torch.randn(16, 32, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(8).repeat(2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = NTXentLoss(memory=memory)(embeddings, labels)
    assert torch.equal(inside, NTXentLoss(memory=memory)(embeddings, labels))


# Rows of any size


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("scale", [1e-20, 1e25])
def test_rows_of_any_norm_cost_the_same(kind, scale, memory):
    embeddings, labels = (values.detach() for values in random_rows(seed=1))
    leaf = (embeddings.float() * scale).requires_grad_()
    exact = embeddings.clone().requires_grad_()
    value, expected = kind(memory=memory)(leaf, labels), kind(memory=memory)(exact, labels)
    value.backward()
    expected.backward()
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    # The gradient is that much larger or smaller, as it must be.
    assert relative_error(leaf.grad.double() * scale, exact.grad) < 1e-4


def test_entries_that_overflow_when_squared_keep_their_direction(memory):
    embeddings, labels = on_circle(torch.float32)
    huge = NTXentLoss(memory=memory).with_statistics(embeddings * 1e37, labels)
    assert huge.rows_without_direction == 0
    assert huge.value.item() == pytest.approx(NTXentLoss(memory=memory)(embeddings, labels).item(), rel=1e-5)


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


# NaN and infinity


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


def test_a_non_finite_reference_is_named_as_one(memory):
    batch = random_batch(seed=2, references=6)
    with torch.no_grad():
        batch.ref_emb[3, 1] = math.inf
    with pytest.raises(NonFiniteEmbeddingsError, match="The references hold NaN or infinity in row 3"):
        value_of(NTXentLoss(memory=memory), batch)


# Refusals


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
