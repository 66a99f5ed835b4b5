"""A queue of past embeddings: more negatives than a batch has rows, for the price of a matrix product.

Letters: N rows of the batch, D their width, Q rows in the queue.

Anchors are the rows of the batch only. Row i of the batch has

    P(i) = { other rows of the batch with its label } ∪ { rows of the queue with its label }
    N(i) = { rows of batch and queue with another label and another content }

and the loss is the wrapped one over these sets: NT-Xent, reduction "pair", for instance, is

    Σ_i Σ_{p∈P(i)} −log( exp(s_ip) / (exp(s_ip) + Σ_{n∈N(i)} exp(s_in)) ) / Σ_i |P(i)|,   i over the batch.

With references (query → document), the queue holds past references, and row i of the batch has

    P(i) = references of the batch and of the queue with its label, N(i) = those with another label and content,

as if the queue were more references of the batch. In the direction from references to the batch, where the loss is
symmetric, a queued one asks too if the batch has rows of its label; without any it adds nothing.

Rows and references of the batch take a gradient in all their roles; rows of the queue are constants. They were
embedded by weights of up to Q / N steps ago: while those change fast, at the start of training, the queue pulls
towards where rows no longer are, hence the warm-up.

Sources: Wang et al. 2020, "Cross-Batch Memory for Embedding Learning"; He et al. 2020, "Momentum Contrast for
Unsupervised Visual Representation Learning" (the queue).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from workers.training.loss_inputs import LossInputs, checked
from workers.training.losses import ContrastiveLoss, LossStatistics

T = TypeVar("T")


class CrossBatchMemory(nn.Module):
    """Contrasts a batch with itself, or its references, and the last `size` before them; see the top of the module.

    Each call in training mode is a step: it contrasts, then puts the batch into the queue. The first `warm_up`
    steps only fill the queue. Outside training mode it is the wrapped loss, and the queue is left alone.

    All state is in `state_dict`: restored after any step, training goes on to the same bits. Row k of all that
    were ever put in lies at place k mod `size`, so `seen` alone says where the next one goes and which are filled.

    Raises ValueError if `dimension` or `size` is below 1, or `warm_up` below 0.
    """

    embeddings: Tensor  # (size, D)
    labels: Tensor  # (size,) int64
    content_ids: Tensor  # (size,) int64, meaningless unless has_content_ids
    has_references: Tensor  # () bool, whether the rows were references
    has_content_ids: Tensor  # () bool
    seen: Tensor  # () int64, rows ever put in
    steps: Tensor  # () int64

    def __init__(self, loss: ContrastiveLoss, *, dimension: int, size: int, warm_up: int = 0) -> None:
        super().__init__()
        if min(dimension, size) < 1 or warm_up < 0:
            raise ValueError(
                f"dimension and size must be at least 1 and warm_up at least 0, not {dimension}, {size}, {warm_up}."
            )
        self.loss = loss
        self.size = size
        self.warm_up = warm_up
        self.register_buffer("embeddings", torch.zeros(size, dimension))
        self.register_buffer("labels", torch.zeros(size, dtype=torch.long))
        self.register_buffer("content_ids", torch.zeros(size, dtype=torch.long))
        self.register_buffer("has_references", torch.tensor(False))
        self.register_buffer("has_content_ids", torch.tensor(False))
        self.register_buffer("seen", torch.tensor(0))
        self.register_buffer("steps", torch.tensor(0))

    def extra_repr(self) -> str:
        return f"dimension={self.embeddings.shape[1]}, size={self.size}, warm_up={self.warm_up}"

    @property
    def filled(self) -> bool:
        """Whether every place of the queue holds a row."""
        return int(self.seen) >= self.size

    @property
    def pointer(self) -> int:
        """The place of the next row."""
        return int(self.seen) % self.size

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
        """The loss; arguments are those of the wrapped one, with rows of width D.

        Raises ValueError for embeddings of another width, or references or content ids given at some steps and not
        at others, and whatever the wrapped loss raises; the queue is then as before.
        """
        value: Tensor = self._step(
            self.loss, LossInputs(embeddings, labels, ref_emb, ref_labels, content_ids, ref_content_ids)
        )
        return value

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
        """The same step with the wrapped loss's statistics, of the batch's rows against batch and queue."""
        return self._step(
            self.loss.with_statistics,
            LossInputs(embeddings, labels, ref_emb, ref_labels, content_ids, ref_content_ids),
        )

    def undo_point(self, rows: int) -> Callable[[], None]:
        """What takes the next step back, if that puts in up to so many rows."""
        first = int(self.seen)
        places = torch.arange(first, first + min(rows, self.size), device=self.labels.device) % self.size
        tables = self.embeddings, self.labels, self.content_ids
        numbers = self.has_references, self.has_content_ids, self.seen, self.steps
        overwritten = [table[places] for table in tables]
        before = [number.clone() for number in numbers]

        def undo() -> None:
            for table, rows_before in zip(tables, overwritten, strict=True):
                table[places] = rows_before
            for number, value in zip(numbers, before, strict=True):
                number.copy_(value)

        return undo

    def _step(self, form: Callable[..., T], batch: LossInputs) -> T:
        if not self.training:
            return form(**batch._asdict())
        batch = self._checked(batch)
        warming_up = int(self.seen) == 0 or int(self.steps) < self.warm_up
        outcome = form(**(batch if warming_up else self._extended(batch))._asdict())
        self._put(*_columns(batch))
        self.has_references.fill_(batch.ref_emb is not None)
        self.steps.add_(1)
        return outcome

    def _extended(self, batch: LossInputs) -> LossInputs:
        """The batch with the queue behind its references, or behind its own rows where it has none."""
        columns, labels, contents = _columns(batch)
        filled = slice(min(int(self.seen), self.size))
        return LossInputs(
            batch.embeddings,
            batch.labels,
            # cat copies: what the backward pass keeps is not what the queue overwrites.
            torch.cat([columns, self.embeddings[filled]]),
            torch.cat([labels, self.labels[filled]]),
            batch.content_ids,
            None if contents is None else torch.cat([contents, self.content_ids[filled]]),
            anchor_offset=0 if batch.ref_emb is None else None,
        )

    def _checked(self, batch: LossInputs) -> LossInputs:
        dimension = self.embeddings.shape[1]
        if batch.embeddings.ndim != 2 or batch.embeddings.shape[1] != dimension:
            raise ValueError(f"embeddings must have shape (n, {dimension}), not {tuple(batch.embeddings.shape)}.")
        batch = checked(batch)
        self._agrees("References", self.has_references, batch.ref_emb is not None)
        self._agrees("Content ids", self.has_content_ids, batch.content_ids is not None)
        return batch

    def _agrees(self, kind: str, queued: Tensor, given: bool) -> None:
        if int(self.seen) and bool(queued) != given:
            raise ValueError(f"{kind} must be given at every step or at none: the queue holds rows of both kinds.")

    @torch.no_grad()
    def _put(self, embeddings: Tensor, labels: Tensor, content_ids: Tensor | None) -> None:
        kept = min(len(embeddings), self.size)  # of a batch larger than the queue, its last rows
        end = int(self.seen) + len(embeddings)
        places = torch.arange(end - kept, end, device=self.labels.device) % self.size
        newest = slice(len(embeddings) - kept, None)
        self.embeddings[places] = embeddings.detach()[newest].to(self.embeddings)
        self.labels[places] = labels[newest].to(self.labels)
        if content_ids is not None:
            self.content_ids[places] = content_ids[newest].to(self.content_ids)
        self.has_content_ids.fill_(content_ids is not None)
        self.seen.fill_(end)


def _columns(batch: LossInputs) -> tuple[Tensor, Tensor, Tensor | None]:
    """What the batch is compared with, and what the queue takes: embeddings, labels and content ids."""
    if batch.ref_emb is None or batch.ref_labels is None:
        return batch.embeddings, batch.labels, batch.content_ids
    return batch.ref_emb, batch.ref_labels, batch.ref_content_ids
