"""What several processes of one training do in `test_distributed.py`, and what one process does in their place.

Every scenario is a function of (rank, sizes): the rows of a process follow from both, and with the rank WHOLE they
are those of all processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from workers.training.distributed import DistributedLoss, average_gradients
from workers.training.gradient_cache import GradientCache
from workers.training.losses import ContrastiveLoss, NTXentLoss, SupConLoss

WHOLE = -1
PATIENCE = timedelta(seconds=40)
SIZES = {"even": (4, 4, 4), "uneven": (5, 2, 7), "one empty": (6, 0, 3), "all empty": (0, 0, 0)}
LOSSES: dict[str, Callable[[], ContrastiveLoss]] = {
    "ntxent": lambda: NTXentLoss(0.2),
    "ntxent tiled": lambda: NTXentLoss(0.2, memory="tiled", tile_size=3),
    "ntxent by class": lambda: NTXentLoss(0.2, reduction="class", learnable_temperature=True).double(),
    "symmetric": lambda: NTXentLoss(0.2, reduction="anchor", symmetric=True, learnable_temperature=True).double(),
    "supcon": lambda: SupConLoss(0.2),
}
WIDTH, D = 6, 5


def run_all(rank: int, processes: int, folder: str) -> None:
    """The body of one process. Leaves what it found in `folder`."""
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", processes)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=processes, timeout=PATIENCE)
    found = {
        **{
            f"{kind}, {sizes}": own_gradients(rank, kind, SIZES[sizes][:processes])
            for kind in LOSSES
            for sizes in SIZES
        },
        **{f"{kind}, towers": own_gradients(rank, kind, SIZES["uneven"][:processes], towers=True) for kind in LOSSES},
        **{
            f"{kind}, trained": train(rank, LOSSES[kind](), processes)
            for kind in ("ntxent", "ntxent by class", "supcon")
        },
        "cached": train(rank, LOSSES["ntxent by class"](), processes, micro_batch=2),
        **{
            f"{kind}, {sizes}, towers {towers}, told": own_statistics(
                rank, kind, SIZES[sizes][:processes], towers=towers
            )
            for kind in LOSSES
            for sizes in SIZES
            for towers in (False, True)
        },
        "cached statistics": cached_statistics(rank, SIZES["one empty"][:processes]),
        "rows seen": rows_seen(rank),
        "constant": gradient_of_a_constant(rank),
        "half precision": in_half_precision(rank),
        "errors": {name: error_of(rank, name) for name in (*DISAGREEMENTS, *TOWER_DISAGREEMENTS)},
    }
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def rows_of(seed: int, rank: int, sizes: tuple[int, ...], *, zero_row: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, labels, and content ids that repeat under other labels; on demand the first row is 0."""
    generator = torch.Generator().manual_seed(seed)
    n = sum(sizes)
    rows = (
        torch.randn(n, WIDTH, generator=generator, dtype=torch.float64),
        torch.randint(3, (n,), generator=generator),
        torch.randint(max(n, 1), (n,), generator=generator),
    )
    if zero_row:
        rows[0][:1] = 0
    return rows if rank == WHOLE else tuple(part.split(sizes)[rank] for part in rows)


def own_gradients(rank: int, kind: str, sizes: tuple[int, ...], *, towers: bool = False) -> dict[str, Tensor]:
    """The loss, and the gradients by this process' rows and the temperature."""
    loss = LOSSES[kind]()
    embeddings, labels, ids = rows_of(1, rank, sizes)
    ref_emb, ref_labels, ref_ids = rows_of(2, rank, tuple(reversed(sizes)))
    leaves = {"embeddings": embeddings.requires_grad_()}
    shared = DistributedLoss(loss)
    if towers:
        leaves["references"] = ref_emb.requires_grad_()
        value = shared(embeddings, labels, ref_emb, ref_labels, content_ids=ids, ref_content_ids=ref_ids)
    else:
        value = shared(embeddings, labels, content_ids=ids)
    value.backward()
    average_gradients(loss.parameters())
    # What averaging over processes will divide by.
    scale = 1 if rank == WHOLE else len(sizes)
    found = {name: leaf.grad / scale for name, leaf in leaves.items()}
    found |= {name: parameter.grad for name, parameter in loss.named_parameters()}
    return {"value": value.detach(), **found}


def own_statistics(rank: int, kind: str, sizes: tuple[int, ...], *, towers: bool) -> dict[str, Any]:
    """All statistics, with a row of zeros in each table, and the gradient by this process' rows."""
    embeddings, labels, ids = rows_of(1, rank, sizes, zero_row=True)
    references = {}
    if towers:
        ref_emb, ref_labels, ref_ids = rows_of(2, rank, tuple(reversed(sizes)), zero_row=True)
        references = {"ref_emb": ref_emb.requires_grad_(), "ref_labels": ref_labels, "ref_content_ids": ref_ids}
    shared = DistributedLoss(LOSSES[kind]())
    told = shared.with_statistics(embeddings.requires_grad_(), labels, content_ids=ids, **references)
    told.value.backward()
    gradient = embeddings.grad / (1 if rank == WHOLE else len(sizes))
    return {**vars(told), "value": told.value.item(), "embeddings": gradient}


def cached_statistics(rank: int, sizes: tuple[int, ...]) -> dict[str, Any]:
    torch.manual_seed(0)
    encoder: nn.Module = nn.Linear(WIDTH, D).double()
    shared = DistributedLoss(NTXentLoss(0.2))
    inputs, labels, _ = rows_of(1, rank, sizes)
    told = GradientCache(encoder, micro_batch=2)(shared.with_statistics, inputs, labels)
    average_gradients(encoder.parameters())
    return {**vars(told), "value": told.value.item(), "weight": encoder.weight.grad}


def train(rank: int, loss: ContrastiveLoss, processes: int, *, micro_batch: int | None = None) -> dict[str, Tensor]:
    """Ten steps with uneven batches, under DistributedDataParallel unless alone; the parameters at the end."""
    torch.manual_seed(0)
    encoder: nn.Module = nn.Sequential(nn.Linear(WIDTH, 8), nn.Tanh(), nn.Linear(8, D)).double()
    trained = nn.ModuleDict({"encoder": encoder, "loss": loss})
    if rank != WHOLE:
        encoder = DistributedDataParallel(encoder)
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.1, momentum=0.9)
    shared = DistributedLoss(loss)
    for step, sizes in enumerate(uneven_sizes(processes)):
        inputs, labels, ids = rows_of(step, rank, sizes)
        if micro_batch is None:
            shared(encoder(inputs), labels, content_ids=ids).backward()
        else:
            GradientCache(encoder, micro_batch=micro_batch)(shared, inputs, labels, content_ids=ids)
        average_gradients(loss.parameters())
        optimizer.step()
        optimizer.zero_grad()
    return {name: parameter.detach() for name, parameter in trained.named_parameters()}


def uneven_sizes(processes: int) -> Iterator[tuple[int, ...]]:
    """Rows of each process in each of ten steps."""
    generator = torch.Generator().manual_seed(7)
    for _ in range(10):
        yield tuple(torch.randint(2, 9, (processes,), generator=generator).tolist())


class Recording(NTXentLoss):
    """Keeps the shapes that it is called with."""

    def forward(self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor, *rest: Any, **more: Any) -> Tensor:
        self.shapes = [embeddings.shape[0], ref_emb.shape[0]]
        return super().forward(embeddings, labels, ref_emb, *rest, **more)


def rows_seen(rank: int) -> list[int]:
    loss = Recording()
    sizes = SIZES["uneven"][: dist.get_world_size()]
    embeddings, labels, _ = rows_of(1, rank, sizes)
    DistributedLoss(loss)(embeddings, labels)
    return loss.shapes


class Unconnected(NTXentLoss):
    """In process 1 a constant, which no reference has a part in."""

    def forward(self, *rows: Tensor, **more: Any) -> Tensor:
        if dist.get_rank() == 1:
            return torch.zeros((), dtype=torch.float64, requires_grad=True)
        return super().forward(*rows, **more)


def gradient_of_a_constant(rank: int) -> Tensor | None:
    embeddings, labels, _ = rows_of(1, rank, SIZES["uneven"][: dist.get_world_size()])
    DistributedLoss(Unconnected())(embeddings.requires_grad_(), labels).backward()
    return embeddings.grad


def in_half_precision(rank: int) -> dict[str, Tensor]:
    sizes = SIZES["uneven"][: 3 if rank == WHOLE else dist.get_world_size()]
    embeddings, labels, _ = rows_of(1, rank, sizes)
    halved = embeddings.bfloat16().requires_grad_()
    value = DistributedLoss(NTXentLoss(0.2))(halved, labels)
    value.backward()
    return {"value": value.detach(), "gradient": halved.grad / len(sizes)}


def error_of(rank: int, name: str) -> str:
    """What a process hears when process 1 does as the table says."""
    embeddings, labels, _ = rows_of(1, rank, SIZES["uneven"][: dist.get_world_size()])
    arguments = {"embeddings": embeddings.requires_grad_(), "labels": labels}
    if name in TOWER_DISAGREEMENTS:
        arguments |= {"ref_emb": embeddings.detach().requires_grad_(), "ref_labels": labels}
    if rank == 1:
        arguments |= (DISAGREEMENTS | TOWER_DISAGREEMENTS)[name](embeddings.detach(), labels)
    try:
        DistributedLoss(NTXentLoss())(**arguments)
    except ValueError as error:
        return f"{type(error).__name__}: {error}"
    return "none"


#: What process 1 passes, and others don't.
DISAGREEMENTS: dict[str, Callable[[Tensor, Tensor], dict[str, Tensor]]] = {
    "width": lambda embeddings, labels: {"embeddings": embeddings[:, 1:].requires_grad_()},
    "type": lambda embeddings, labels: {"embeddings": embeddings.float().requires_grad_()},
    "gradient": lambda embeddings, labels: {"embeddings": embeddings},
    "label": lambda embeddings, labels: {"labels": labels[1:]},
    "integer": lambda embeddings, labels: {"labels": labels + 0.5},
    "content ids": lambda embeddings, labels: {"content_ids": labels},
    "NaN": lambda embeddings, labels: {"embeddings": (embeddings * torch.nan).requires_grad_()},
}

TOWER_DISAGREEMENTS: dict[str, Callable[[Tensor, Tensor], dict[str, Tensor | None]]] = {
    "their embeddings": lambda embeddings, labels: {"embeddings": embeddings},
    "their references": lambda embeddings, labels: {"ref_emb": None, "ref_labels": None},
    "label and content id for each row of their references": lambda embeddings, labels: {"ref_labels": None},
    "The embeddings hold NaN": lambda embeddings, labels: {"embeddings": (embeddings * torch.nan).requires_grad_()},
    "The references hold NaN": lambda embeddings, labels: {"ref_emb": (embeddings * torch.nan).requires_grad_()},
}
