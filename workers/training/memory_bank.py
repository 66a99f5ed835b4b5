"""A queue of past embeddings: more negatives than a batch has rows, for the price of a matrix product.

Letters: N rows of the batch, D their width, Q rows in the queue.

Anchors are the rows of the batch only. Row i of the batch has

    P(i) = { other rows of the batch with its label } ∪ { rows of the queue with its label }
    N(i) = { rows of batch and queue with another label and another content }

and the loss is the wrapped one over these sets: NT-Xent, reduction "pair", for instance, is

    Σ_i Σ_{p∈P(i)} −log( exp(s_ip) / (exp(s_ip) + Σ_{n∈N(i)} exp(s_in)) ) / Σ_i |P(i)|,   i over the batch.

Rows of the batch take a gradient in both roles, as anchors and as one another's positives and negatives; rows
of the queue are constants. They were embedded by weights of up to Q / N steps ago: while those change fast,
at the start of training, the queue pulls towards where rows no longer are, hence the warm-up.

Sources: Wang et al. 2020, "Cross-Batch Memory for Embedding Learning"; He et al. 2020, "Momentum Contrast for
Unsupervised Visual Representation Learning" (the queue).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from workers.training.losses import ContrastiveLoss, LossStatistics

T = TypeVar("T")


class CrossBatchMemory(nn.Module):
    """Contrasts a batch with itself and the last `size` rows before it; see the top of the module.

    Each call in training mode is a step: it contrasts, then puts the batch into the queue. The first `warm_up`
    steps only fill the queue. Outside training mode it is the wrapped loss, and the queue is left alone.

    All state is in `state_dict`: restored after any step, training goes on to the same bits. Row k of all that
    were ever put in lies at place k mod `size`, so `seen` alone says where the next one goes and which are filled.

    Raises ValueError if `dimension` or `size` is below 1, or `warm_up` below 0.
    """

    embeddings: Tensor  # (size, D)
    labels: Tensor  # (size,) int64
    content_ids: Tensor  # (size,) int64, meaningless unless has_content_ids
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

    def forward(self, embeddings: Tensor, labels: Tensor, content_ids: Tensor | None = None) -> Tensor:
        """The loss of embeddings (N, D) with labels (N,) and content_ids (N,), integers.

        Raises ValueError for embeddings of another width, or content ids given at some steps and not at others,
        and whatever the wrapped loss raises; the queue is then as before.
        """
        value: Tensor = self._step(self.loss, embeddings, labels, content_ids)
        return value

    def with_statistics(self, embeddings: Tensor, labels: Tensor, content_ids: Tensor | None = None) -> LossStatistics:
        """The same step with the wrapped loss's statistics, of the batch's rows against batch and queue."""
        return self._step(self.loss.with_statistics, embeddings, labels, content_ids)

    def _step(self, form: Callable[..., T], embeddings: Tensor, labels: Tensor, content_ids: Tensor | None) -> T:
        if not self.training:
            return form(embeddings, labels, content_ids=content_ids)
        self._check(embeddings, content_ids)
        if int(self.seen) == 0 or int(self.steps) < self.warm_up:
            outcome = form(embeddings, labels, content_ids=content_ids)
        else:
            outcome = self._contrast(form, embeddings, labels, content_ids)
        self._put(embeddings, labels, content_ids)
        self.steps.add_(1)
        return outcome

    def _contrast(self, form: Callable[..., T], embeddings: Tensor, labels: Tensor, content_ids: Tensor | None) -> T:
        filled = slice(min(int(self.seen), self.size))
        # cat copies: what the backward pass keeps is not what the queue overwrites. It also promotes, a batch in
        # half precision to the queue's float32.
        references = torch.cat([embeddings, self.embeddings[filled]])
        return form(
            embeddings.to(references.dtype),
            labels,
            references,
            torch.cat([labels.to(self.labels), self.labels[filled]]),
            content_ids=content_ids,
            ref_content_ids=_behind(content_ids, self.content_ids[filled]),
            anchor_offset=0,
        )

    def _check(self, embeddings: Tensor, content_ids: Tensor | None) -> None:
        dimension = self.embeddings.shape[1]
        if embeddings.ndim != 2 or embeddings.shape[1] != dimension:
            raise ValueError(f"embeddings must have shape (n, {dimension}), not {tuple(embeddings.shape)}.")
        if int(self.seen) and bool(self.has_content_ids) != (content_ids is not None):
            raise ValueError("Content ids must be given at every step or at none: the queue holds rows of both kinds.")

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


def _behind(content_ids: Tensor | None, queued: Tensor) -> Tensor | None:
    return None if content_ids is None else torch.cat([content_ids.to(queued), queued])
