from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from encoders.text import TextEncoder
from workers.training.gradient_cache import EmbeddingsChangedError, GradientCache, RandomState
from workers.training.losses import NTXentLoss, SupConLoss
from workers.training.memory_bank import CrossBatchMemory
from workers.training.tokens import TokenizedDataset

N = 11
LABELS = torch.arange(N) % 4
CONTENTS = torch.arange(N) % 5
LOSSES = [
    pytest.param(lambda: NTXentLoss(0.2, memory="dense"), id="ntxent dense"),
    pytest.param(lambda: NTXentLoss(0.2, memory="tiled", tile_size=4), id="ntxent tiled"),
    pytest.param(lambda: NTXentLoss(0.2, symmetric=True, learnable_temperature=True), id="learnable temperature"),
    pytest.param(lambda: SupConLoss(0.2, reduction="class", learnable_temperature=True), id="supcon"),
]


def tower(seed: int, dropout: float = 0.3) -> nn.Module:
    torch.manual_seed(seed)
    layers = nn.Linear(6, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 5)
    return nn.Sequential(*layers).double()


def inputs(seed: int, n: int = N) -> Tensor:
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def in_pieces(encoder: Callable[[Any], Tensor], rows: Any, size: int) -> Tensor:
    """All embeddings with one graph. By pieces, since dropout depends on what is drawn together."""
    return torch.cat([encoder(rows[start : start + size]) for start in range(0, len(rows), size)])


def gradients(*modules: nn.Module) -> list[Tensor | None]:
    """All gradients, which are taken away."""
    found = [parameter.grad for module in modules for parameter in module.parameters()]
    for module in modules:
        module.zero_grad()
    return found


def assert_equal(found: list[Tensor | None], wanted: list[Tensor | None], tolerance: float = 1e-12) -> None:
    assert len(found) == len(wanted) > 0
    for one, other in zip(found, wanted, strict=True):
        assert one is not None
        assert other is not None
        assert other.norm() > 0
        assert (one - other).norm() <= tolerance * other.norm()


@contextmanager
def largest_saved_graph() -> Iterator[Callable[[], int]]:
    """How many numbers autograd keeps at most, between the start of a graph and the end of its backward pass.

    A saved tensor's numbers are given back once the backward pass has released it.
    """
    held, most = [0], [0]

    class Saved:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor
            held[0] += tensor.numel()
            most[0] = max(most[0], held[0])

        def __del__(self) -> None:
            held[0] -= self.tensor.numel()

    with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
        yield lambda: most[0]


# Equality with one batch


@pytest.mark.parametrize("make_loss", LOSSES)
@pytest.mark.parametrize("micro_batch", [1, 4, N, N + 5])
def test_gradients_are_those_of_one_batch_with_the_same_dropout(micro_batch, make_loss):
    encoder, loss, rows = tower(1), make_loss().double(), inputs(2)
    torch.manual_seed(3)
    wanted_value = loss(in_pieces(encoder, rows, micro_batch), LABELS, content_ids=CONTENTS)
    wanted_value.backward()
    wanted = gradients(encoder, loss)
    torch.manual_seed(3)
    value = GradientCache(encoder, micro_batch=micro_batch)(loss, rows, LABELS, content_ids=CONTENTS)
    assert value.item() == pytest.approx(wanted_value.item(), abs=1e-13)
    assert not value.requires_grad
    assert_equal(gradients(encoder, loss), wanted)


@pytest.mark.parametrize("make_loss", LOSSES)
def test_without_dropout_they_are_those_of_one_forward_pass(make_loss):
    encoder, loss, rows = tower(1, dropout=0.0), make_loss().double(), inputs(2)
    loss(encoder(rows), LABELS).backward()
    wanted = gradients(encoder, loss)
    GradientCache(encoder, micro_batch=3)(loss, rows, LABELS)
    assert_equal(gradients(encoder, loss), wanted)


@pytest.mark.parametrize("make_loss", LOSSES)
@pytest.mark.parametrize("shared", [False, True])
def test_two_towers(make_loss, shared):
    encoder, loss = tower(1), make_loss().double()
    ref_encoder = encoder if shared else tower(4)
    rows, references, ref_labels = inputs(2), inputs(5, n=14), torch.arange(14) % 4
    modules = (encoder, loss) if shared else (encoder, ref_encoder, loss)
    torch.manual_seed(3)
    anchors = in_pieces(encoder, rows, 4)
    loss(anchors, LABELS, in_pieces(ref_encoder, references, 4), ref_labels).backward()
    wanted = gradients(*modules)
    torch.manual_seed(3)
    cache = GradientCache(encoder, None if shared else ref_encoder, micro_batch=4)
    cache(loss, rows, LABELS, references, ref_labels)
    assert_equal(gradients(*modules), wanted)


def test_a_frozen_tower_stays_without_gradient():
    encoder, ref_encoder, loss = tower(1), tower(4).requires_grad_(False), NTXentLoss(0.2)
    GradientCache(encoder, ref_encoder, micro_batch=4)(loss, inputs(2), LABELS, inputs(5), LABELS)
    assert all(parameter.grad is None for parameter in ref_encoder.parameters())
    assert all(parameter.grad is not None for parameter in encoder.parameters())


@pytest.mark.parametrize("micro_batch", [1, 5, 100])
def test_the_real_encoder_with_its_own_dropout(encoder: TextEncoder, tokens: TokenizedDataset, micro_batch):
    encoder.double().train()
    loss = NTXentLoss(0.1, learnable_temperature=True).double()
    texts = tokens.select(torch.arange(24).numpy())
    labels = torch.arange(12).repeat_interleave(2)
    torch.manual_seed(3)
    loss(in_pieces(encoder, texts, micro_batch), labels).backward()
    wanted = gradients(encoder, loss)
    torch.manual_seed(3)
    GradientCache(encoder, micro_batch=micro_batch)(loss, texts, labels)
    # The key's bias shifts all scores of a softmax alike: its gradient is 0 but for rounding.
    names = [name for name, _ in encoder.named_parameters()] + ["log_temperature"]
    for name, one, other in zip(names, gradients(encoder, loss), wanted, strict=True):
        assert torch.allclose(one, other, rtol=1e-10, atol=1e-12), name


def test_gradients_are_added_to_those_already_there():
    encoder = tower(1, dropout=0.0)
    cache = GradientCache(encoder, micro_batch=4)
    cache(NTXentLoss(0.2), inputs(2), LABELS)
    once = gradients(encoder)
    for _ in range(2):
        cache(NTXentLoss(0.2), inputs(2), LABELS)
    assert_equal(gradients(encoder), [2 * gradient for gradient in once])


def test_under_autocast_weights_cast_without_a_graph_are_not_used_again():
    encoder = tower(1, dropout=0.0).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        NTXentLoss(0.2)(in_pieces(encoder, inputs(2).float(), 4), LABELS).backward()
    wanted = gradients(encoder)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        GradientCache(encoder, micro_batch=4)(NTXentLoss(0.2), inputs(2).float(), LABELS)
    assert_equal(gradients(encoder), wanted, tolerance=0.01)


def test_the_loss_is_called_once_so_that_a_memory_takes_each_row_once():
    encoder = tower(1)
    bank = CrossBatchMemory(NTXentLoss(0.2), dimension=5, size=40).double()
    for seed in range(3):
        GradientCache(encoder, micro_batch=4)(bank, inputs(seed), LABELS, content_ids=CONTENTS)
    assert bank.seen == 3 * N


def test_statistics_come_back_without_a_graph():
    encoder, loss = tower(1, dropout=0.0), NTXentLoss(0.2)
    result = GradientCache(encoder, micro_batch=4)(loss.with_statistics, inputs(2), LABELS)
    wanted = loss.with_statistics(encoder(inputs(2)), LABELS)
    assert result.pairs == wanted.pairs
    assert result.value.item() == pytest.approx(wanted.value.item(), abs=1e-13)
    assert not result.value.requires_grad


def test_no_rows_give_no_loss_and_zero_gradients():
    encoder = tower(1)
    value = GradientCache(encoder, micro_batch=4)(NTXentLoss(0.2), inputs(2, n=0), LABELS[:0])
    assert value.item() == 0
    assert all(gradient is not None and not gradient.any() for gradient in gradients(encoder))


# Memory


def total(embeddings: Tensor, labels: Tensor) -> Tensor:
    """A loss that saves nothing itself."""
    return embeddings.sum()


def test_the_largest_graph_is_that_of_one_micro_batch():
    encoder, rows, labels = tower(1), inputs(2, n=64), torch.arange(64) % 8
    with largest_saved_graph() as of_eight:
        encoder(rows[:8]).sum().backward()
    with largest_saved_graph() as of_all:
        in_pieces(encoder, rows, 8).sum().backward()
    with largest_saved_graph() as cached:
        GradientCache(encoder, micro_batch=8)(total, rows, labels)
    assert cached() == of_eight()
    assert of_all() > 6 * of_eight()


# Randomness


def test_random_numbers_go_on_after_the_batch_and_differ_between_micro_batches():
    drawn: list[Tensor] = []

    def encoder(rows: Tensor) -> Tensor:
        drawn.append(torch.rand(len(rows), 5, dtype=torch.float64))
        return drawn[-1]

    torch.manual_seed(3)
    GradientCache(encoder, micro_batch=4)(NTXentLoss(0.2), inputs(2), LABELS)
    following = torch.rand(1, dtype=torch.float64)
    torch.manual_seed(3)
    wanted = [torch.rand(n, 5, dtype=torch.float64) for n in (4, 4, 3)]
    assert all(torch.equal(a, b) for a, b in zip(drawn, [*wanted, *wanted], strict=True))
    assert torch.equal(following, torch.rand(1, dtype=torch.float64))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_random_state_of_the_gpu_is_replayed():
    torch.rand(1, device="cuda")
    state = RandomState.capture()
    first = torch.rand(4, device="cuda")
    present = RandomState.capture()
    with state.replayed():
        assert torch.equal(torch.rand(4, device="cuda"), first)
    assert torch.equal(RandomState.capture().cuda[0], present.cuda[0])


def test_randomness_from_elsewhere_is_not_silently_wrong():
    own = torch.Generator().manual_seed(0)
    encoder = tower(1, dropout=0.0)

    def noisy(rows: Tensor) -> Tensor:
        return encoder(rows) + 0.5 * torch.randn(len(rows), 5, generator=own, dtype=torch.float64)

    with pytest.raises(EmbeddingsChangedError, match="global generators"):
        GradientCache(noisy, micro_batch=4)(NTXentLoss(0.2), inputs(2), LABELS)


def test_embeddings_that_turn_into_nan_are_other_embeddings():
    encoder, asked = tower(1, dropout=0.0), []

    def failing(rows: Tensor) -> Tensor:
        asked.append(rows)
        return encoder(rows) * (1.0 if len(asked) == 1 else torch.nan)

    with pytest.raises(EmbeddingsChangedError):
        GradientCache(failing, micro_batch=N)(NTXentLoss(0.2), inputs(2), LABELS)


@pytest.mark.parametrize("half", [{"ref_inputs": inputs(5)}, {"ref_labels": LABELS}])
def test_references_and_their_labels_go_together(half):
    with pytest.raises(ValueError, match="go together"):
        GradientCache(tower(1), micro_batch=4)(NTXentLoss(0.2), inputs(2), LABELS, **half)


def test_refuses_micro_batches_of_nothing():
    with pytest.raises(ValueError, match="at least 1"):
        GradientCache(tower(1), micro_batch=0)
