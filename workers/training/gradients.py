"""The gradient of a batch's loss, in as many micro-batches as memory asks for, and as many processes as there are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from encoders.loading import AnyEncoder
from encoders.text import TextEncoder
from encoders.vectors import Rows
from workers.training.batches import Batch
from workers.training.gradient_cache import GradientCache
from workers.training.inputs import Inputs
from workers.training.losses import LossStatistics
from workers.training.matryoshka import AnyLoss
from workers.training.micro_batches import Parts
from workers.training.precision import Precision, embed
from workers.training.ranks import Ranks


class Taken(NamedTuple):
    """A batch's loss, and what this process embedded of the batch."""

    statistics: LossStatistics
    embeddings: Tensor  # (N, D), without their graph
    tokens: int  # that passed through the encoder, those that stand for no text included


@dataclass
class BatchGradient:
    """Adds the gradient of a batch's loss to all weights of encoder and loss.

    Where memory runs out, the micro-batch is halved, for good, and the batch begun anew: `on_halving` is told the new
    size. The gradient is the same, up to rounding and the draws of dropout, which go by micro-batch.

    With several ranks each passes its own share, and all get the gradient of the whole batch; where memory runs out
    for one, all halve.
    """

    encoder: AnyEncoder
    loss: AnyLoss
    micro_batch_size: int  # rows whose texts are in one pass
    on_halving: Callable[[int], None]
    ranks: Ranks

    def __call__(self, inputs: Inputs, share: Batch, *, rows: int, precision: Precision, seed: int) -> Taken:
        """`inputs` are those of the share, in its order; `rows` those of the whole batch; `seed` decides dropout.

        Raises NonFiniteEmbeddingsError, and what says that memory ran out once a micro-batch is one row.
        """
        undo = self.loss.undo_point(len(inputs))
        while True:
            torch.manual_seed(seed)
            self.encoder.zero_grad()  # also of a backward pass that came half way
            self.loss.zero_grad()
            try:
                taken = self._add(inputs, share, precision)
            except (MemoryError, RuntimeError) as error:
                size = min(self.micro_batch_size, self.ranks.largest_share(rows))
                if size == 1 or not self.ranks.all_lack(error):
                    raise
            else:
                self.ranks.average_gradients(chain(self.encoder.parameters(), self.loss.parameters()))
                return taken
            # Outside of the handler, whose error holds the frames that hold the memory.
            undo()
            self.encoder.zero_grad()
            if self.encoder.device.type == "cuda":
                torch.cuda.empty_cache()
            self.micro_batch_size = size // 2
            self.on_halving(self.micro_batch_size)

    def _add(self, inputs: Inputs, share: Batch, precision: Precision) -> Taken:
        count = -(-share.rows // self.micro_batch_size)
        if count <= 1:
            return self._in_one_pass(inputs, share, precision)
        return self._in_parts(inputs, share, precision, count)

    def _in_one_pass(self, inputs: Inputs, share: Batch, precision: Precision) -> Taken:
        with self.ranks.together():
            embeddings = embed(self.encoder, inputs, precision)
        # A graph of its own for the loss, in whose backward pass processes wait for one another.
        table = embeddings.detach().requires_grad_()
        statistics: LossStatistics = self.loss(table, share)
        statistics.value.backward()  # type: ignore[no-untyped-call]
        with self.ranks.together():
            if embeddings.requires_grad:  # not of a frozen encoder
                embeddings.backward(table.grad)  # type: ignore[no-untyped-call]
        return Taken(statistics, table.detach(), self._tokens([inputs]))

    def _in_parts(self, inputs: Inputs, share: Batch, precision: Precision, count: int) -> Taken:
        parts = Parts.of(inputs, count)
        back = torch.from_numpy(parts.back).to(self.encoder.device)
        tables: list[Tensor] = []

        def loss(table: Tensor, _: Tensor) -> LossStatistics:
            embeddings = table[back]
            tables.append(embeddings.detach())
            statistics: LossStatistics = self.loss(embeddings, share)
            return statistics

        cache = GradientCache(
            lambda rows: embed(self.encoder, rows, precision), micro_batch=1, embedding=self.ranks.together
        )
        # Which texts are alike is in the batch, not in labels of the cache's rows.
        statistics = cache(loss, parts, back)
        return Taken(statistics, tables[0], self._tokens(parts.parts))

    def _tokens(self, passes: Sequence[Rows]) -> int:
        if not isinstance(self.encoder, TextEncoder):
            return 0
        if self.encoder.packs:
            return sum(len(text) for texts in passes for text in texts)
        return sum(len(texts) * max(map(len, texts), default=0) for texts in passes)
