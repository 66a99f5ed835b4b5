"""Gradient caching: the gradient of a large batch in the memory of a small one.

A contrastive loss needs all embeddings of a batch at once, but not the graphs that made them: with θ the weights
and e_m the embeddings of micro-batch m, ∂loss/∂θ = Σ_m (∂e_m/∂θ)ᵀ ∂loss/∂e_m. So

    1. embed micro-batch by micro-batch without a graph,
    2. take the loss over all embeddings, and its gradient by each of them,
    3. embed each micro-batch again, now with a graph, and send its part of that gradient back through it,

for one more forward pass than usual. It is exact only if the second embedding equals the first: the random
state before each micro-batch is kept in phase 1 and replayed in phase 3, and the embeddings are compared.

Source: Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup" (GradCache).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Protocol, Self, TypeVar

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from workers.training.losses import LossStatistics

#: How far apart two embeddings of one micro-batch may be, over their norm. Rounding in bfloat16 stays below;
#: dropout drawn anew, with any probability in use, moves them by tens of percent.
_SAME = 0.01

Encoder = Callable[[Any], Tensor]  # rows to their embeddings, (n, D)
Outcome = TypeVar("Outcome", Tensor, LossStatistics)


class EmbeddingsChangedError(RuntimeError):
    """An encoder gave other embeddings in phase 3 than in phase 1: what was added to `grad` is not the gradient."""

    def __init__(self) -> None:
        super().__init__(
            "The encoder embeds the same rows differently when asked again. It must draw its random numbers from "
            "torch's global generators, and a forward pass must not change what the next one gives."
        )


class Rows(Protocol):
    """Whatever an encoder takes, if it can be cut: a list of token arrays, a tensor, …"""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> Any: ...


@dataclass(frozen=True)
class RandomState:
    """Torch's global generators at one moment: the CPU's, and once CUDA is in use that of this process' device."""

    cpu: Tensor
    cuda: Tensor | None

    @classmethod
    def capture(cls) -> Self:
        in_use: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        # Of all devices, each process would take up memory on all of them.
        return cls(torch.get_rng_state(), torch.cuda.get_rng_state() if in_use else None)

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Go back to that moment, and afterwards to the present one."""
        with torch.random.fork_rng(devices=[] if self.cuda is None else [torch.cuda.current_device()]):
            torch.set_rng_state(self.cpu)
            if self.cuda is not None:
                torch.cuda.set_rng_state(self.cuda)
            yield


@dataclass(frozen=True)
class _MicroBatch:
    """Some rows of one tower, and how phase 1 embedded them."""

    encoder: Encoder
    rows: Any
    embeddings: Tensor  # (n, D), without a graph
    before: RandomState


class GradientCache:
    """Adds the gradient of a loss over a batch to all parameters, embedding `micro_batch` rows at a time.

    `encoder` embeds the anchors and `ref_encoder` the references; None: one encoder does both. A row's embedding
    must depend on that row only (no BatchNorm).

    An encoder in DistributedDataParallel exchanges gradients once a batch, with the last of its micro-batches.
    `embedding` is entered for each of phases 1 and 3: what is in it exchanges nothing otherwise.

    Raises ValueError if micro_batch is below 1.
    """

    def __init__(
        self,
        encoder: Encoder,
        ref_encoder: Encoder | None = None,
        *,
        micro_batch: int,
        embedding: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        if micro_batch < 1:
            raise ValueError(f"micro_batch must be at least 1, not {micro_batch}.")
        self.encoder = encoder
        self.ref_encoder = encoder if ref_encoder is None else ref_encoder
        self.micro_batch = micro_batch
        self.embedding = embedding

    def __call__(
        self,
        loss: Callable[..., Outcome],
        inputs: Rows,
        labels: Tensor,
        ref_inputs: Rows | None = None,
        ref_labels: Tensor | None = None,
        **ids: Tensor | None,
    ) -> Outcome:
        """What `loss(embeddings, labels, ref_emb, ref_labels, **ids)` returns, without its graph.

        `loss` is a loss of this package or its `with_statistics`, and is called once; parameters of its own, such
        as a learnable temperature, get their gradient too.

        Raises EmbeddingsChangedError, ValueError for ref_inputs without ref_labels or the reverse, and whatever
        encoders and loss raise.
        """
        if (ref_inputs is None) != (ref_labels is None):
            raise ValueError("ref_inputs and ref_labels go together: pass both or neither.")
        with self.embedding():
            towers = [self._embed(self.encoder, inputs)]
            if ref_inputs is not None:
                towers.append(self._embed(self.ref_encoder, ref_inputs))
        outcome, gradients = self._contrast(loss, towers, [labels, ref_labels], ids)
        with self.embedding():
            self._send_back(list(chain.from_iterable(towers)), gradients)
        return outcome

    @torch.no_grad()
    def _embed(self, encoder: Encoder, inputs: Rows) -> list[_MicroBatch]:
        """Phase 1. Of no rows, one micro-batch of none."""
        micro_batches = []
        for start in range(0, max(len(inputs), 1), self.micro_batch):
            rows, before = inputs[start : start + self.micro_batch], RandomState.capture()
            micro_batches.append(_MicroBatch(encoder, rows, encoder(rows), before))
        return micro_batches

    def _contrast(
        self,
        loss: Callable[..., Outcome],
        towers: list[list[_MicroBatch]],
        labels: list[Tensor | None],
        ids: dict[str, Tensor | None],
    ) -> tuple[Outcome, list[Tensor]]:
        """Phase 2: the loss, and its gradient (n, D) by each micro-batch, in their order."""
        tables = [torch.cat([part.embeddings for part in tower]).requires_grad_() for tower in towers]
        outcome = loss(*chain.from_iterable(zip(tables, labels, strict=False)), **ids)
        value = outcome if isinstance(outcome, Tensor) else outcome.value
        value.backward()  # type: ignore[no-untyped-call]
        gradients: list[Tensor] = []
        for table, tower in zip(tables, towers, strict=True):
            gradient = torch.zeros_like(table) if table.grad is None else table.grad
            gradients += torch.split(gradient, [len(part.embeddings) for part in tower])
        return _without_graph(outcome), gradients

    def _send_back(self, micro_batches: list[_MicroBatch], gradients: list[Tensor]) -> None:
        """Phase 3."""
        last = {id(part.encoder): number for number, part in enumerate(micro_batches)}
        drifts = []
        for number, (part, gradient) in enumerate(zip(micro_batches, gradients, strict=True)):
            with _exchanging(part.encoder, number == last[id(part.encoder)]), part.before.replayed():
                again = part.encoder(part.rows)
                if again.requires_grad:  # not of a frozen encoder
                    again.backward(gradient)  # type: ignore[no-untyped-call]
            drifts.append(_drift(part.embeddings, again.detach()))
        # Asked at the end: each answer waits for the device. NaN is no drift that is small enough.
        if not all(drift.item() <= _SAME for drift in drifts):
            raise EmbeddingsChangedError


def _exchanging(encoder: Encoder, exchange: bool) -> AbstractContextManager[None]:
    """Whether a backward pass in this context exchanges gradients with other processes."""
    if exchange or not isinstance(encoder, DistributedDataParallel):
        return nullcontext()
    return encoder.no_sync()


def _drift(first: Tensor, again: Tensor) -> Tensor:
    """How far apart two tables (n, D) are, over the norm of the first."""
    norm = torch.linalg.vector_norm(first).clamp_min(torch.finfo(first.dtype).tiny)
    drift: Tensor = torch.linalg.vector_norm(again - first) / norm
    return drift


def _without_graph(outcome: Outcome) -> Outcome:
    if isinstance(outcome, LossStatistics):
        return replace(outcome, value=outcome.value.detach())
    return outcome.detach()
