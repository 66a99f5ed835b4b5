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

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from workers.training.comparison import numbered, pair_weights
from workers.training.loss_inputs import LossInputs, holds_integers, largest_entries, unit_rows
from workers.training.loss_statistics import LossStatistics, count_zero_rows
from workers.training.losses import ContrastiveLoss

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_INCOMPLETE = -1
#: What processes must agree on, for embeddings and for references.
_FACTS = (
    "an integer label and content id for each row",
    "the width",
    "the type",
    "whether there is a gradient",
    "whether there are content ids",
)


class ProcessesDisagreeError(ValueError):
    """Processes hold rows that don't fit together. Every process raises it, none is left waiting."""


class DistributedLoss(nn.Module):
    """A loss over the rows that all processes of a group pass to it; in a single process just that loss.

    Processes may pass different numbers of rows, none included, as long as all of them call it, and then call
    `backward`, equally often. Labels and content ids must mean the same in all processes.

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

        Raises ProcessesDisagreeError, and what the loss raises, in all processes alike: a row with NaN is named by
        its place in the whole batch.
        """
        inputs = LossInputs(embeddings, labels, ref_emb, ref_labels, content_ids, ref_content_ids)
        if process_count(self.group) == 1:
            alone: Tensor = self.loss(**inputs._asdict())
            return alone
        tables = gather(inputs, self.group)
        values = [self.loss(**part._asdict()) for part in self._parts(tables)]
        return _add_up(torch.stack(values).mean(), tables, self.group)

    def with_statistics(
        self,
        embeddings: Tensor,
        labels: Tensor,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
        *,
        content_ids: Tensor | None = None,
        ref_content_ids: Tensor | None = None,
    ) -> LossStatistics:
        """The same loss with the statistics of the whole batch, the same in all processes. See `forward`."""
        inputs = LossInputs(embeddings, labels, ref_emb, ref_labels, content_ids, ref_content_ids)
        if process_count(self.group) == 1:
            return self.loss.with_statistics(**inputs._asdict())
        tables = gather(inputs, self.group)
        parts = [self.loss.tallied(part) for part in self._parts(tables)]
        value = _add_up(torch.stack([part.value for part in parts]).mean(), tables, self.group)
        # Each process counts its own rows of zeros: as references, every process sees all of them.
        zero_rows = torch.stack([count_zero_rows(self._own_units(table)) for table in tables]).sum()
        totals = torch.stack([part.tally for part in parts]).sum(dim=0)
        totals = torch.cat([totals, zero_rows.to(totals).view(1)])
        dist.all_reduce(totals, group=self.group)
        return LossStatistics.of(value, totals[:-1], totals[-1], self.loss.temperature)

    def _parts(self, tables: list[GatheredRows]) -> list[LossInputs]:
        """What this process' anchors ask, in one direction or both."""
        anchors, references = tables[0], tables[-1]
        # The loss looks at all references, but at its own anchors only: it would raise where they are, and the
        # other processes would wait.
        largest_entries(anchors.every.embeddings)
        directions = [(anchors, references)]
        if self.loss.symmetric and references is not anchors:
            directions.append((references, anchors))
        return [self._part(*direction) for direction in directions]

    def _part(self, anchors: GatheredRows, references: GatheredRows) -> LossInputs:
        own, every = anchors.own, references.every
        return LossInputs(
            own.embeddings,
            own.labels,
            every.embeddings,
            every.labels,
            own.content_ids,
            every.content_ids,
            anchor_offset=anchors.start if anchors is references else None,
            anchor_weights=self._weights(anchors, references),
        )

    def _weights(self, anchors: GatheredRows, references: GatheredRows) -> Tensor:
        """What a pair of each own anchor counts in the whole loss, (N_w,)."""
        count, classes, asked = numbered(anchors.every.labels, references.every.labels)
        found = torch.bincount(asked, minlength=count)[classes]
        dtype = torch.promote_types(anchors.own.embeddings.dtype, torch.float32)
        weights = pair_weights(classes, count, found - int(anchors is references), self.loss.reduction, dtype)
        return weights[anchors.start : anchors.start + len(anchors.own.embeddings)]

    def _own_units(self, table: GatheredRows) -> Tensor:
        own = table.own.embeddings.detach()
        return unit_rows(own.to(torch.promote_types(own.dtype, torch.float32)), self.loss.eps)


@dataclass(frozen=True)
class Rows:
    embeddings: Tensor  # (n, D)
    labels: Tensor  # (n,) int64
    content_ids: Tensor | None  # (n,) int64


@dataclass(frozen=True)
class GatheredRows:
    """This process' rows and those of all, in the order of ranks; `own` starts at row `start` of `every`."""

    own: Rows
    every: Rows
    start: int


def gather(inputs: LossInputs, group: dist.ProcessGroup | None = None) -> list[GatheredRows]:
    """All processes' embeddings, and references if there are any, with a gradient to both.

    A collective: every process calls it. Raises ProcessesDisagreeError.
    """
    counts = _agreed_counts(inputs, group)
    tables = [_gathered_rows(inputs.embeddings, inputs.labels, inputs.content_ids, counts[0], group)]
    if inputs.ref_emb is not None and inputs.ref_labels is not None:
        tables.append(_gathered_rows(inputs.ref_emb, inputs.ref_labels, inputs.ref_content_ids, counts[1], group))
    return tables


def _gathered_rows(
    embeddings: Tensor, labels: Tensor, ids: Tensor | None, counts: list[int], group: dist.ProcessGroup | None
) -> GatheredRows:
    labels = labels.to(embeddings.device, torch.int64)
    ids = None if ids is None else ids.to(labels)
    every: Tensor = _Gather.apply(embeddings, counts, group)  # type: ignore[no-untyped-call]
    return GatheredRows(
        Rows(embeddings, labels, ids),
        Rows(every, _gathered(labels, counts, group), None if ids is None else _gathered(ids, counts, group)),
        start=sum(counts[: dist.get_rank(group)]),
    )


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter], group: dist.ProcessGroup | None = None) -> None:
    """Average `grad` over processes, as DistributedDataParallel does; afterwards it has the same bytes in all of them.

    A process that has none where others have one counts as zeros. Where nobody has one, none is made: an optimizer
    leaves such a parameter alone.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if process_count(group) == 1 or not trained:
        return
    wanted = torch.tensor([parameter.grad is not None for parameter in trained], dtype=torch.int32)
    wanted = wanted.to(trained[0].device)
    dist.all_reduce(wanted, dist.ReduceOp.MAX, group=group)
    under_way = []
    for parameter, is_wanted in zip(trained, wanted.tolist(), strict=True):
        if is_wanted:
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            under_way.append((parameter.grad, dist.all_reduce(parameter.grad, group=group, async_op=True)))
    for gradient, work in under_way:
        work.wait()
        gradient.div_(process_count(group))


@torch.no_grad()
def gather_rows(rows: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Rows (N_w, D) of all processes, in the order of ranks, (N, D), without a gradient."""
    if process_count(group) == 1:
        return rows
    own = torch.tensor(len(rows), device=rows.device)
    counts = [torch.empty_like(own) for _ in range(process_count(group))]
    dist.all_gather(counts, own, group=group)
    return _gathered(rows, torch.stack(counts).tolist(), group)


def process_count(group: dist.ProcessGroup | None = None) -> int:
    """W; 1 where nobody has initialised torch.distributed."""
    return dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1


def _agreed_counts(inputs: LossInputs, group: dist.ProcessGroup | None) -> tuple[list[int], list[int]]:
    """N_w of all processes, of embeddings and of references; 0 where there are none.

    What one process might refuse alone, while others wait for it, is refused by all here.
    """
    tables = {
        "embeddings": (inputs.embeddings, inputs.labels, inputs.content_ids),
        "references": (inputs.ref_emb, inputs.ref_labels, inputs.ref_content_ids),
    }
    own = torch.tensor([_facts(*table) for table in tables.values()], device=inputs.embeddings.device)
    processes = [torch.empty_like(own) for _ in range(process_count(group))]
    dist.all_gather(processes, own, group=group)
    of_embeddings, of_references = torch.stack(processes, dim=2).tolist()
    for name, found in zip(tables, (of_embeddings, of_references), strict=True):
        for fact, values in zip(_FACTS, found, strict=False):
            if len(set(values)) > 1 or _INCOMPLETE in values:
                raise ProcessesDisagreeError(
                    f"Processes must agree on {fact} of their {name}, but from rank 0 on it is {values}."
                )
    return of_embeddings[-1], of_references[-1]


def _facts(table: Tensor | None, labels: Tensor | None, ids: Tensor | None) -> list[int]:
    """A number for each of _FACTS, and how many rows there are."""
    if table is None and labels is None:
        return [0] * (len(_FACTS) + 1)
    numbers = [labels, *([] if ids is None else [ids])]
    if table is None or table.ndim != 2 or not all(_one_a_row(each, table) for each in numbers):
        return [_INCOMPLETE] + [0] * len(_FACTS)
    return [
        1,
        table.shape[1],
        _DTYPES.index(table.dtype) if table.dtype in _DTYPES else len(_DTYPES),
        int(table.requires_grad and torch.is_grad_enabled()),
        int(ids is not None),
        len(table),
    ]


def _one_a_row(numbers: Tensor | None, table: Tensor) -> bool:
    return numbers is not None and numbers.shape == table.shape[:1] and holds_integers(numbers)


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
