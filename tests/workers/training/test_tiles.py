from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.workers.training.pair_by_pair import Batch, definition, random_batch
from workers.training import tiles
from workers.training.losses import ContrastiveLoss, LossStatistics, NTXentLoss, SupConLoss

LOSSES = [NTXentLoss, SupConLoss]
REDUCTIONS = ["pair", "anchor", "class"]
FEW_EXAMPLES = settings(max_examples=60, deadline=None)


def result_of(loss: ContrastiveLoss, batch: Batch) -> tuple[LossStatistics, tuple[Tensor, ...]]:
    result = loss.with_statistics(
        batch.embeddings,
        batch.labels,
        batch.ref_emb,
        batch.ref_labels,
        content_ids=batch.content_ids,
        ref_content_ids=batch.ref_content_ids,
    )
    leaves = [*batch.leaves, *loss.parameters()]
    return result, torch.autograd.grad(result.value, leaves)


def assert_same(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...], tolerance: float = 1e-11) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other).norm() <= tolerance * max(1.0, float(other.norm()))


def in_pairs(n: int, d: int = 16, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(n, d, generator=generator, dtype=dtype).requires_grad_()
    return embeddings, torch.arange(n // 2).repeat(2)


# Equal to the whole matrix


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    n, labels = draw(st.integers(0, 14)), draw(st.integers(1, 14))
    references = draw(st.none() | st.integers(0, 14))
    contents = draw(st.none() | st.integers(1, 6))
    seed, d = draw(st.integers(0, 10_000)), draw(st.integers(1, 5))
    return random_batch(seed, n, d, labels, references=references, contents=contents)


@FEW_EXAMPLES
@given(
    batch=batches(),
    tile=st.integers(1, 20),
    kind=st.sampled_from(LOSSES),
    reduction=st.sampled_from(REDUCTIONS),
    symmetric=st.booleans(),
    temperature=st.sampled_from([0.0015, 0.02, 0.1, 1.0]),  # below 0.0024 walks of float64 need maxima
    kept=st.sampled_from([0, 100, 10**6]),
)
def test_dense_equals_tiled(batch, tile, kind, reduction, symmetric, temperature, kept):
    dense = kind(temperature, "dense", reduction, symmetric)
    tiled = kind(temperature, "tiled", reduction, symmetric, tile_size=tile)
    expected, expected_gradients = result_of(dense, batch)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "KEPT_BYTES", kept)
        found, gradients = result_of(tiled, batch)
    assert found.value.item() == pytest.approx(expected.value.item(), rel=1e-11, abs=1e-11)
    assert_same(gradients, expected_gradients)
    for name in ("pairs", "anchors_without_positives", "anchors_without_negatives", "accuracy", "temperature"):
        assert getattr(found, name) == getattr(expected, name), name


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("temperature", [0.01, 0.07])  # in float32 the first needs maxima
def test_float32_tiles_agree_with_float64(kind, temperature):
    embeddings, labels = in_pairs(300)
    labels = labels % 40
    exact = embeddings.detach().double().requires_grad_()
    value = kind(temperature, "tiled", tile_size=64)(embeddings, labels)
    expected = kind(temperature, "dense")(exact, labels)
    value.backward()
    expected.backward()
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    assert (embeddings.grad - exact.grad).norm() < 1e-4 * exact.grad.norm()


@pytest.mark.parametrize("kind", LOSSES)
def test_one_large_class_among_small_ones(kind):
    # 10 rows of one label are more than a tile of 1, 3 or 8 holds, and lie in several.
    embeddings = random_batch(seed=5, n=17, d=3).embeddings
    batch = Batch(embeddings, torch.tensor([7] * 10 + [1, 1, 2, 2, 2, 3, 4]))
    expected = definition(batch, 0.2, kind.objective, "pair")
    gradient = torch.autograd.grad(expected, embeddings)
    for tile in (1, 3, 8, 40):
        value = kind(0.2, "tiled", "pair", tile_size=tile)(embeddings, batch.labels)
        assert value.item() == pytest.approx(expected.item(), abs=1e-12)
        assert_same(torch.autograd.grad(value, embeddings), gradient)


@pytest.mark.parametrize("tile", [None, 5])
def test_tiles_need_not_see_the_references_gradient(tile):
    batch = random_batch(seed=3, references=9)
    constants = batch.ref_emb.detach()
    grads = [
        torch.autograd.grad(
            NTXentLoss(memory=memory, tile_size=tile)(batch.embeddings, batch.labels, constants, batch.ref_labels),
            batch.embeddings,
        )
        for memory in ("dense", "tiled")
    ]
    assert_same(*grads)


def test_a_gradient_of_the_references_alone():
    batch = random_batch(seed=3, references=9)
    constants = batch.embeddings.detach()
    grads = [
        torch.autograd.grad(
            NTXentLoss(memory=memory)(constants, batch.labels, batch.ref_emb, batch.ref_labels), batch.ref_emb
        )
        for memory in ("dense", "tiled")
    ]
    assert_same(*grads)


# The gradient is that of the value


@pytest.mark.parametrize(
    ("kind", "reduction", "memory", "references", "symmetric"),
    [
        combination
        for combination in itertools.product(LOSSES, REDUCTIONS, ["dense", "tiled"], [None, 5], [False, True])
        if combination[3] or not combination[4]
    ],
)
def test_gradcheck(kind, reduction, memory, references, symmetric):
    batch = random_batch(seed=3, n=7, d=3, labels=3, references=references, contents=4)
    loss = kind(0.2, memory, reduction, symmetric, learnable_temperature=True, tile_size=3).double()

    def value(log_temperature: Tensor, *leaves: Tensor) -> Tensor:
        arguments = (leaves[0], batch.labels, *((leaves[1], batch.ref_labels) if references else ()))
        contents = {"content_ids": batch.content_ids, "ref_content_ids": batch.ref_content_ids}
        return torch.func.functional_call(loss, {"log_temperature": log_temperature}, arguments, contents)

    leaf = loss.log_temperature.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(value, (leaf, *batch.leaves))


def test_a_second_derivative_is_refused_with_the_way_out():
    embeddings, labels = in_pairs(8)
    value = NTXentLoss(memory="tiled")(embeddings, labels)
    (gradient,) = torch.autograd.grad(value, embeddings, create_graph=True)
    assert gradient.isfinite().all()  # to build its graph is no crime yet
    with pytest.raises(RuntimeError, match='memory="dense"'):
        gradient.square().sum().backward()


def test_the_factor_of_backward_scales_the_gradient():
    embeddings, labels = in_pairs(8)
    loss = NTXentLoss(memory="tiled")
    (one,) = torch.autograd.grad(loss(embeddings, labels), embeddings)
    (three,) = torch.autograd.grad(3 * loss(embeddings, labels), embeddings)
    torch.testing.assert_close(three, 3 * one)


def test_nothing_is_saved_where_no_gradient_is_wanted():
    embeddings, labels = in_pairs(8)
    with torch.no_grad():
        assert NTXentLoss(memory="tiled")(embeddings, labels).grad_fn is None
    assert not NTXentLoss(memory="tiled")(embeddings.detach(), labels).requires_grad


# Numbers at the end of their range


@pytest.mark.parametrize("temperature", [0.005, 0.01, 0.02, 0.07])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_without_negatives_near_orthogonal_and_antipodal_classes(temperature, dtype):
    axes = torch.eye(8, dtype=dtype).repeat_interleave(2, dim=0)
    for rows in (axes, torch.cat([axes, -axes]), axes[:2], axes + 1e-3):
        leaf = rows.clone().requires_grad_()
        labels = torch.arange(len(rows) // 2).repeat_interleave(2)
        value = NTXentLoss(temperature, "tiled", tile_size=4)(leaf, labels)
        value.backward()
        exact = rows.double().requires_grad_()
        expected = NTXentLoss(temperature, "dense")(exact, labels)
        expected.backward()
        assert value.item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-30)
        assert leaf.grad.isfinite().all()
        assert (leaf.grad - exact.grad).norm() <= 1e-3 * exact.grad.norm() + 1e-5


@pytest.mark.parametrize("kind", LOSSES)
def test_easy_positives_keep_their_tiny_loss_and_gradient(kind):
    rows = torch.tensor([[1.0, 0.02], [1, 0], [-1, 0], [-1, 0.02]])
    labels = torch.tensor([0, 0, 1, 1])
    leaf, exact = rows.clone().requires_grad_(), rows.double().requires_grad_()
    value, expected = kind(0.05, "tiled")(leaf, labels), kind(0.05, "dense")(exact, labels)
    value.backward()
    # The definition itself in float64 would lose half its digits here.
    assert value.item() == pytest.approx(2 * math.exp(-40), rel=0.05)
    if kind is NTXentLoss:
        expected.backward()
        assert (leaf.grad - exact.grad).norm() < 1e-3 * exact.grad.norm()


@pytest.mark.parametrize("temperature", [0.01, 0.07])
def test_hits_do_not_depend_on_the_tile(temperature):
    embeddings, labels = in_pairs(64, d=4)
    found = {
        NTXentLoss(temperature, "tiled", tile_size=tile).with_statistics(embeddings, labels).accuracy
        for tile in (1, 7, 64)
    }
    assert len(found) == 1


# Memory


class LargestTensor(TorchDispatchMode):
    """Remembers how many elements the largest tensor had that any operation inside returned."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        returned = function(*arguments, **(keywords or {}))
        for value in returned if isinstance(returned, (tuple, list)) else (returned,):
            if isinstance(value, Tensor):
                self.elements = max(self.elements, value.numel())
        return returned


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("rows_per_label", [1, 2, 8, 600])
@pytest.mark.parametrize("references", [False, True])
def test_there_is_never_a_matrix_of_all_pairs(kind, rows_per_label, references):
    n, d, tile = 600, 8, 64
    embeddings, _ = in_pairs(n, d)
    labels = torch.arange(n) // rows_per_label
    others = (torch.randn(n, d, generator=torch.Generator().manual_seed(1)), labels.flip(0)) if references else ()
    contents = {"content_ids": torch.arange(n) % 50, "ref_content_ids": torch.arange(n) % 40 if references else None}
    with LargestTensor() as largest:
        loss = kind(memory="tiled", symmetric=True, tile_size=tile)
        loss.with_statistics(embeddings, labels, *others, **contents).value.backward()
    assert tile * tile <= largest.elements <= 2 * n * d  # n·n is 360 000


def test_auto_holds_small_matrices_only():
    with LargestTensor() as largest:
        NTXentLoss()(*in_pairs(2048, d=4)).backward()
    assert largest.elements < 2048 * 2048 / 4
    assert NTXentLoss()(*in_pairs(32)).grad_fn.name() != "_TiledBackward"


def test_the_side_of_tiles_follows_the_device():
    assert tiles.side_of_tiles(torch.device("cpu")) == 768
    assert tiles.side_of_tiles(torch.device("cuda")) == 4096
