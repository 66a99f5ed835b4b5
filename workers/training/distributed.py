"""One loss over the batches of several processes, with the gradient that one process would have found.

Letters: W processes, D width; process w holds N_w rows of the whole batch of N = Σ_w N_w, in the order of ranks.

Process w takes the part of the loss that its own anchors have against all rows: its N_w of the N rows of the
similarity matrix, weighted as a part of the whole, so that parts add up to the loss. Its rows also are positives
and negatives of all other processes' anchors. The gradient in that role is computed where those anchors are, and
summed over processes on its way back through the gathering. Without that sum it would be wrong by more than a
factor, which is why gathering that cuts the graph, and the averages that follow it, give another gradient.

Sources: Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual Representations" (SimCLR, whose
negatives are those of all devices); Radford et al. 2021, "Learning Transferable Visual Models From Natural Language
Supervision" (CLIP, each device computes its own rows only).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from workers.training.losses import ContrastiveLoss, pair_weights

T = TypeVar("T")
_END: Any = object()
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class ProcessesDisagreeError(ValueError):
    """Processes hold rows that don't fit together. Every process raises it, none is left waiting."""


class DistributedLoss(nn.Module):
    """A loss over the rows that all processes of a group pass to it; in a single process just that loss.

    Processes may pass different numbers of rows, none included, as long as all of them call it, and then call
    `backward`, equally often (see `in_step`). Labels and content ids must mean the same in all processes.

    The gradient is made for averaging over processes, which DistributedDataParallel does: after it, parameters
    have the gradient of the whole batch's loss. Who adds gradients up instead divides by W. Parameters outside
    DistributedDataParallel, such as a learnable temperature, need `average_gradients` before the optimizer's step.
    """

    def __init__(self, loss: ContrastiveLoss, group: dist.ProcessGroup | None = None) -> None:
        super().__init__()
        self.loss = loss
        self.group = group

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
        *,
        content_ids: Tensor | None = None,
        ref_content_ids: Tensor | None = None,
    ) -> Tensor:
        """The loss of the whole batch, the same scalar in all processes. Arguments are those of the loss.

        Raises ProcessesDisagreeError, and what the loss raises: it sees the gathered rows as its references, so
        that a row with NaN is an error in all processes.
        """
        if process_count(self.group) == 1:
            ids = {"content_ids": content_ids, "ref_content_ids": ref_content_ids}
            alone: Tensor = self.loss(embeddings, labels, ref_emb, ref_labels, **ids)
            return alone
        anchors = gather(Rows(embeddings, labels, content_ids), self.group)
        if ref_emb is None or ref_labels is None:
            if ref_emb is not ref_labels:
                raise ValueError("ref_emb and ref_labels go together: pass both or neither.")
            part = self._part(anchors, anchors)
            return _add_up(part, [anchors], self.group)
        references = gather(Rows(ref_emb, ref_labels, ref_content_ids), self.group)
        part = self._part(anchors, references)
        if self.loss.symmetric:
            part = (part + self._part(references, anchors)) / 2
        return _add_up(part, [anchors, references], self.group)

    def _part(self, anchors: GatheredRows, references: GatheredRows) -> Tensor:
        """What this process' anchors add to the loss in one direction."""
        own, every = anchors.own, references.every
        part: Tensor = self.loss(
            own.embeddings,
            own.labels,
            every.embeddings,
            every.labels,
            content_ids=own.content_ids,
            ref_content_ids=every.content_ids,
            anchor_offset=anchors.start if anchors is references else None,
            anchor_weights=self._weights(anchors, references),
        )
        return part

    def _weights(self, anchors: GatheredRows, references: GatheredRows) -> Tensor:
        """What a pair of each own anchor counts in the whole loss, (N_w,)."""
        labels, asked = anchors.every.labels, references.every.labels
        names, numbers = torch.unique(torch.cat([labels, asked]), return_inverse=True)
        classes, count = numbers[: len(labels)], len(names)
        found = torch.bincount(numbers[len(labels) :], minlength=count)[classes]
        dtype = torch.promote_types(anchors.own.embeddings.dtype, torch.float32)
        weights = pair_weights(classes, count, found - int(anchors is references), self.loss.reduction, dtype)
        return weights[anchors.start : anchors.start + len(anchors.own.embeddings)]


@dataclass(frozen=True)
class Rows:
    embeddings: Tensor  # (n, D)
    labels: Tensor  # (n,) integer
    content_ids: Tensor | None = None  # (n,) integer


@dataclass(frozen=True)
class GatheredRows:
    """This process' rows and those of all, in the order of ranks; `own` starts at row `start` of `every`."""

    own: Rows
    every: Rows
    start: int


def gather(rows: Rows, group: dist.ProcessGroup | None = None) -> GatheredRows:
    """All processes' rows, with a gradient to their embeddings. A collective: every process calls it.

    Raises ProcessesDisagreeError.
    """
    device = rows.embeddings.device
    labels = rows.labels.to(device, torch.int64)
    ids = None if rows.content_ids is None else rows.content_ids.to(device, torch.int64)
    own = Rows(rows.embeddings, labels, ids)
    counts = _agreed_counts(own, group)
    embeddings: Tensor = _Gather.apply(own.embeddings, counts, group)  # type: ignore[no-untyped-call]
    every = Rows(embeddings, _gathered(labels, counts, group), None if ids is None else _gathered(ids, counts, group))
    return GatheredRows(own, every, start=sum(counts[: dist.get_rank(group)]))


def in_step(
    batches: Iterable[T], group: dist.ProcessGroup | None = None, *, device: torch.device | str = "cpu"
) -> Iterator[T]:
    """This process' batches, for as long as every process has one: none then waits for a process that is done.

    `device` is where the group's backend exchanges numbers: the GPU for NCCL.
    """
    if process_count(group) == 1:
        yield from batches
        return
    remaining = iter(batches)
    while True:
        batch = next(remaining, _END)
        everyone = torch.tensor(int(batch is not _END), device=device)
        dist.all_reduce(everyone, dist.ReduceOp.MIN, group=group)
        if not everyone.item():
            return
        yield batch


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter], group: dist.ProcessGroup | None = None) -> None:
    """Average `grad` over processes, as DistributedDataParallel does; where there is none it counts as zeros."""
    if process_count(group) == 1:
        return
    for parameter in parameters:
        if parameter.requires_grad:
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            dist.all_reduce(gradient, group=group)
            parameter.grad = gradient.div_(process_count(group))


def process_count(group: dist.ProcessGroup | None = None) -> int:
    """W; 1 where nobody has initialised torch.distributed."""
    return dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1


def _agreed_counts(rows: Rows, group: dist.ProcessGroup | None) -> list[int]:
    """N_w of all processes. What one might refuse alone, while others wait for it, is refused by all here."""
    table, labels, ids = rows.embeddings, rows.labels, rows.content_ids
    complete = table.ndim == 2 and labels.shape == table.shape[:1] and (ids is None or ids.shape == labels.shape)
    facts = {
        "a label and a content id for each row of a table": complete,
        "the table's width": table.shape[-1] if complete else 0,
        "its type": _DTYPES.index(table.dtype) if table.dtype in _DTYPES else -1,
        "whether it carries a gradient": table.requires_grad and torch.is_grad_enabled(),
        "whether there are content ids": ids is not None,
    }
    own = torch.tensor([len(table) if complete else 0, *map(int, facts.values())], device=table.device)
    processes = [torch.empty_like(own) for _ in range(process_count(group))]
    dist.all_gather(processes, own, group=group)
    counts, *found = torch.stack(processes).T.tolist()
    for fact, values in zip(facts, found, strict=True):
        if len(set(values)) > 1 or not found[0][0]:
            raise ProcessesDisagreeError(f"Processes must agree on {fact}, but from rank 0 on it is {values}.")
    return list(counts)


def _gathered(own: Tensor, counts: list[int], group: dist.ProcessGroup | None) -> Tensor:
    """(N_w, …) of all processes as (N, …). Collectives want equal shapes: padded to the largest, then cut."""
    padded = own.new_zeros(max(counts), *own.shape[1:])
    padded[: len(own)] = own
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded, group=group)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


class _Gather(torch.autograd.Function):
    """Own embeddings (N_w, D) to everyone's (N, D); back, the sum of what all processes ask of the own ones."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, counts: list[int], group: dist.ProcessGroup | None) -> Tensor:
        ctx.counts, ctx.group = counts, group
        return _gathered(own, counts, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,), rank = gradients, dist.get_rank(ctx.group)
        # Half precision would round at every addition.
        total = gradient.to(torch.promote_types(gradient.dtype, torch.float32), copy=True).contiguous()
        dist.all_reduce(total, group=ctx.group)
        return torch.split(total, ctx.counts)[rank].to(gradient.dtype), None, None


def _add_up(part: Tensor, gathered: list[GatheredRows], group: dist.ProcessGroup | None) -> Tensor:
    tables = [rows.every.embeddings for rows in gathered]
    total: Tensor = _AddUp.apply(part, group, *tables)  # type: ignore[no-untyped-call]
    return total


class _AddUp(torch.autograd.Function):
    """The sum of all processes' parts. Its gradient is W, to be averaged away over processes.

    The gathered tables pass by so that every process' backward pass goes through their gathering, which waits for
    the others, even where its own part depends on nothing.
    """

    @staticmethod
    def forward(ctx: Any, part: Tensor, group: dist.ProcessGroup | None, *tables: Tensor) -> Tensor:
        ctx.processes, ctx.tables = process_count(group), len(tables)
        total = part.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return gradients[0] * ctx.processes, None, *[None] * ctx.tables
