from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor

from tests.workers.training.pair_by_pair import Batch, definition
from workers.training.losses import ContrastiveLoss, NTXentLoss, SupConLoss
from workers.training.memory_bank import CrossBatchMemory

TEMPERATURE = 0.2
D = 4


def make_memory(loss: ContrastiveLoss | None = None, *, size: int = 7, warm_up: int = 0) -> CrossBatchMemory:
    return CrossBatchMemory(loss or NTXentLoss(TEMPERATURE), dimension=D, size=size, warm_up=warm_up).double()


def make_batches(*sizes: int, seed: int = 0, labels: int = 3) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Embeddings, labels and content ids; contents repeat, under other labels too."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(n, D, generator=generator, dtype=torch.float64).requires_grad_(),
            torch.randint(labels, (n,), generator=generator),
            torch.randint(6, (n,), generator=generator),
        )
        for n in sizes
    ]


def take(bank: CrossBatchMemory, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    return bank(*batch[:2], content_ids=batch[2])


def loss_of_anchors(
    embeddings: Tensor, labels: list[int], contents: list[int], anchors: int, *, supcon: bool = False
) -> Tensor:
    """The definition, a pair at a time: of the first `anchors` rows, against all others; reduction "pair"."""
    z = [row / row.norm() for row in embeddings]
    terms = []
    for i in range(anchors):
        others = [j for j in range(len(z)) if j != i]
        positives = [j for j in others if labels[j] == labels[i]]
        negatives = [j for j in others if labels[j] != labels[i] and contents[j] != contents[i]]
        for p in positives:
            denominator = {p, *negatives} | (set(positives) if supcon else set())
            exps = {j: torch.exp(z[i] @ z[j] / TEMPERATURE) for j in denominator}
            terms.append(-torch.log(exps[p] / torch.stack(list(exps.values())).sum()))
    return torch.stack(terms).mean()


@pytest.mark.parametrize("supcon", [False, True])
@pytest.mark.parametrize("memory", ["dense", "tiled"])
@pytest.mark.parametrize("size", [3, 7, 100])
def test_loss_and_gradient_are_those_of_the_batch_against_itself_and_the_last_rows(size, memory, supcon):
    kind = SupConLoss if supcon else NTXentLoss
    bank = make_memory(kind(TEMPERATURE, memory=memory, reduction="pair"), size=size)
    past: list[tuple[Tensor, int, int]] = []
    for embeddings, labels, contents in make_batches(5, 6, 4, 9, 2, 6):
        value = bank(embeddings, labels, content_ids=contents)
        (gradient,) = torch.autograd.grad(value, embeddings)
        queue = past[-size:]
        every = torch.cat([embeddings, *(row[None] for row, _, _ in queue)])
        all_labels = [*labels.tolist(), *(label for _, label, _ in queue)]
        all_contents = [*contents.tolist(), *(content for _, _, content in queue)]
        wanted = loss_of_anchors(every, all_labels, all_contents, len(labels), supcon=supcon)
        (wanted_gradient,) = torch.autograd.grad(wanted, embeddings)
        assert value.item() == pytest.approx(wanted.item(), abs=1e-12)
        assert torch.allclose(gradient, wanted_gradient, atol=1e-12)
        past += zip(embeddings.detach(), labels.tolist(), contents.tolist(), strict=True)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("reduction", ["pair", "anchor", "class"])
@pytest.mark.parametrize("kind", [NTXentLoss, SupConLoss])
def test_with_references_the_queue_is_more_of_them(kind, reduction, symmetric):
    bank = make_memory(kind(TEMPERATURE, reduction=reduction, symmetric=symmetric), size=7)
    batches = make_batches(5, 6, 4, 9, 2), make_batches(6, 3, 5, 9, 4, seed=1)
    past: list[tuple[Tensor, Tensor, Tensor]] = []
    for (rows, labels, contents), (refs, ref_labels, ref_contents) in zip(*batches, strict=True):
        value = bank(rows, labels, refs, ref_labels, content_ids=contents, ref_content_ids=ref_contents)
        queue = [torch.cat([step[part] for step in past])[-7:] if past else () for part in range(3)]
        batch = Batch(
            rows,
            labels,
            torch.cat([refs, *([queue[0]] if past else [])]),
            torch.cat([ref_labels, *([queue[1]] if past else [])]),
            contents,
            torch.cat([ref_contents, *([queue[2]] if past else [])]),
        )
        wanted = definition(batch, TEMPERATURE, kind.objective, reduction, symmetric=symmetric)
        assert value.item() == pytest.approx(wanted.item(), abs=1e-12)
        gradients = (torch.autograd.grad(each, (rows, refs)) for each in (value, wanted))
        for one, other in zip(*gradients, strict=True):
            assert torch.allclose(one, other, atol=1e-12)
        past.append((refs.detach(), ref_labels, ref_contents))


def test_queued_references_without_a_partner_in_the_batch_do_not_ask():
    bank = make_memory(NTXentLoss(TEMPERATURE, symmetric=True))
    (queries, _, _), (documents, _, _), (later, _, _) = make_batches(3, 3, 3)
    bank(queries, torch.arange(3), documents, torch.arange(3))
    value = bank(queries, torch.arange(3, 6), later, torch.arange(3, 6))
    there = NTXentLoss(TEMPERATURE)(
        queries, torch.arange(3), torch.cat([later, documents]), torch.tensor([0, 1, 2, 7, 8, 9])
    )
    back = NTXentLoss(TEMPERATURE)(later, torch.arange(3), queries, torch.arange(3))
    assert value.item() == pytest.approx((there + back).item() / 2, abs=1e-12)


def test_references_are_given_always_or_never():
    bank, (first, second) = make_memory(), make_batches(3, 3)
    bank(*first[:2])
    with pytest.raises(ValueError, match="References must be given at every step or at none"):
        bank(*second[:2], *first[:2])


@pytest.mark.parametrize("labels", [torch.zeros(3, 1), torch.zeros(2)])
def test_wrong_labels_are_refused_in_the_same_words_once_there_is_a_queue(labels):
    bank, (first, second) = make_memory(), make_batches(3, 3)
    bank(*first[:2])
    with pytest.raises(ValueError, match=r"labels must have shape \(3,\)"):
        bank(second[0], labels.long())


@pytest.mark.parametrize("sizes", [(3, 3, 3), (7,), (8,), (20,), (5, 20, 1), (1, 6, 7, 8), (0, 2, 0, 6)])
def test_the_queue_holds_the_last_rows_at_their_places(sizes):
    bank, batches = make_memory(size=7), make_batches(*sizes)
    for batch in batches:
        take(bank, batch)
    every = [torch.cat([batch[part].detach() for batch in batches]) for part in range(3)]
    seen = sum(sizes)
    for row in range(max(0, seen - 7), seen):
        assert torch.equal(bank.embeddings[row % 7], every[0][row])
        assert bank.labels[row % 7] == every[1][row]
        assert bank.content_ids[row % 7] == every[2][row]
    assert (bank.seen, bank.pointer, bank.filled) == (seen, seen % 7, seen >= 7)


@pytest.mark.parametrize("saved_after", range(8))
def test_a_restored_memory_goes_on_to_the_same_bits(saved_after):
    batches = make_batches(3, 3, 5, 2, 9, 3, 3, 4)
    bank = make_memory(NTXentLoss(TEMPERATURE, learnable_temperature=True), warm_up=2)
    for batch in batches[:saved_after]:
        take(bank, batch)
    saved = copy.deepcopy(bank.state_dict())
    uninterrupted = [take(bank, batch) for batch in batches[saved_after:]]
    restored = make_memory(NTXentLoss(TEMPERATURE, learnable_temperature=True), warm_up=2)
    restored.load_state_dict(saved)
    resumed = [take(restored, batch) for batch in batches[saved_after:]]
    assert all(torch.equal(a, b) for a, b in zip(uninterrupted, resumed, strict=True))
    assert all(torch.equal(bank.state_dict()[name], value) for name, value in restored.state_dict().items())


def test_a_state_of_another_size_is_refused():
    with pytest.raises(RuntimeError, match="size mismatch"):
        make_memory(size=7).load_state_dict(make_memory(size=8).state_dict())


def test_the_queue_is_filled_but_not_used_while_it_warms_up():
    bank, alone = make_memory(warm_up=2, size=100), NTXentLoss(TEMPERATURE)
    batches = make_batches(6, 6, 6, 6)
    used = [not torch.equal(bank(e, y), alone(e, y)) for e, y, _ in batches]
    assert used == [False, False, True, True]
    assert bank.seen == 24


def test_outside_training_it_is_the_plain_loss_and_keeps_its_state():
    bank, (first, (embeddings, labels, contents)) = make_memory(), make_batches(6, 6)
    take(bank, first)
    before = copy.deepcopy(bank.state_dict())
    bank.eval()
    wanted = NTXentLoss(TEMPERATURE)(embeddings, labels, content_ids=contents)
    assert torch.equal(bank(embeddings, labels, content_ids=contents), wanted)
    assert all(torch.equal(before[name], value) for name, value in bank.state_dict().items())


def test_a_queued_row_of_the_same_content_is_no_negative():
    bank = make_memory()
    bank(torch.eye(D, dtype=torch.float64)[:1], torch.tensor([5]), content_ids=torch.tensor([1]))
    batch = torch.tensor([[1.0, 0, 0, 0], [1.0, 0.1, 0, 0]], dtype=torch.float64)
    # Without another negative a pair costs nothing; with the queued row it would cost log 2 and more.
    assert bank(batch, torch.tensor([0, 0]), content_ids=torch.tensor([1, 1])).item() == 0
    apart = make_memory()
    apart(torch.eye(D, dtype=torch.float64)[:1], torch.tensor([5]), content_ids=torch.tensor([9]))
    assert apart(batch, torch.tensor([0, 0]), content_ids=torch.tensor([1, 1])).item() > math.log(2)


def test_a_batch_without_pairs_of_its_own_learns_from_the_queue():
    bank, (first, (embeddings, _, _)) = make_memory(), make_batches(3, 3)
    bank(first[0], torch.arange(3))
    bank(embeddings, torch.arange(3)).backward()
    assert (embeddings.grad.norm(dim=1) > 0).all()


def test_the_backward_pass_is_not_disturbed_by_rows_put_in_meanwhile():
    early, late, batches = make_memory(), make_memory(), make_batches(7, 7, 7)
    gradients = []
    for bank, overwrite in ((early, False), (late, True)):
        take(bank, batches[0])
        value = take(bank, batches[1])
        if overwrite:
            take(bank, batches[2])
        gradients.append(torch.autograd.grad(value, batches[1][0])[0])
    assert torch.equal(*gradients)
    assert not late.embeddings.requires_grad


@pytest.mark.parametrize("reduction", ["pair", "anchor", "class"])
def test_statistics_come_with_the_same_step(reduction):
    plain, told = (make_memory(NTXentLoss(TEMPERATURE, reduction=reduction)) for _ in range(2))
    for embeddings, labels, contents in make_batches(5, 6, 4):
        against = torch.cat([labels, plain.labels[: min(plain.seen, 7)]])
        value, result = (
            plain(embeddings, labels, content_ids=contents),
            told.with_statistics(embeddings, labels, content_ids=contents),
        )
        assert torch.allclose(result.value, value, atol=1e-12)
        assert result.pairs == (labels[:, None] == against).sum() - len(labels)
    assert torch.equal(plain.embeddings, told.embeddings)


def test_half_precision_batches_are_contrasted_with_a_queue_in_float32():
    bank = CrossBatchMemory(NTXentLoss(TEMPERATURE), dimension=D, size=7)
    for embeddings, labels, _ in make_batches(6, 6):
        halved = embeddings.detach().bfloat16().requires_grad_()
        value = bank(halved, labels)
    value.backward()
    assert (value.dtype, halved.grad.dtype, bank.embeddings.dtype) == (torch.float32, torch.bfloat16, torch.float32)


def test_what_the_loss_refuses_does_not_enter_the_queue():
    bank = make_memory()
    with pytest.raises(ValueError, match="NaN"):
        bank(torch.full((2, D), math.nan, dtype=torch.float64), torch.tensor([0, 0]))
    assert bank.seen == bank.steps == 0


def test_content_ids_are_given_always_or_never():
    bank, (first, second) = make_memory(), make_batches(3, 3)
    take(bank, first)
    with pytest.raises(ValueError, match="every step or at none"):
        bank(second[0], second[1])


def test_refuses_rows_of_another_width():
    with pytest.raises(ValueError, match=r"\(n, 4\)"):
        make_memory()(torch.ones(2, D + 1), torch.tensor([0, 0]))


@pytest.mark.parametrize(("dimension", "size", "warm_up"), [(0, 4, 0), (4, 0, 0), (4, 4, -1)])
def test_refuses_sizes_out_of_range(dimension, size, warm_up):
    with pytest.raises(ValueError, match="at least"):
        CrossBatchMemory(NTXentLoss(), dimension=dimension, size=size, warm_up=warm_up)


def test_its_repr_names_the_sizes():
    assert "dimension=4, size=7, warm_up=3" in repr(make_memory(warm_up=3))
