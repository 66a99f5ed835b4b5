"""The gradient of a batch's loss, in as many micro-batches as memory asks for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from encoders.loading import AnyEncoder
from encoders.text import TextEncoder
from encoders.vectors import Rows
from workers.training.batches import Batch
from workers.training.gradient_cache import GradientCache
from workers.training.inputs import Inputs
from workers.training.lack_of_memory import is_lack_of_memory
from workers.training.losses import LossStatistics
from workers.training.matryoshka import AnyLoss
from workers.training.micro_batches import Parts
from workers.training.precision import Precision, embed


class Taken(NamedTuple):
    """A batch's loss, and the embeddings (N, D) it was taken over, without their graph."""

    statistics: LossStatistics
    embeddings: Tensor
    padding: float  # share of the encoder's tokens that stand for no text


@dataclass
class BatchGradient:
    """Adds the gradient of a batch's loss to all weights of encoder and loss.

    Where memory runs out, the micro-batch is halved, for good, and the batch begun anew: `on_halving` is told the new
    size. The gradient is the same, up to rounding and the draws of dropout, which go by micro-batch.
    """

    encoder: AnyEncoder
    loss: AnyLoss
    micro_batch_size: int  # rows whose texts are in one pass
    on_halving: Callable[[int], None]

    def __call__(self, inputs: Inputs, batch: Batch, *, precision: Precision, seed: int) -> Taken:
        """`inputs` are those of the batch, in its order; `seed` decides dropout.

        Raises NonFiniteEmbeddingsError, and what says that memory ran out once a micro-batch is one row.
        """
        undo = self.loss.undo_point(len(inputs))
        while True:
            torch.manual_seed(seed)
            self.encoder.zero_grad()  # also of a backward pass that came half way
            self.loss.zero_grad()
            try:
                return self._add(inputs, batch, precision)
            except (MemoryError, RuntimeError) as error:
                size = min(self.micro_batch_size, batch.rows)
                if size == 1 or not is_lack_of_memory(error):
                    raise
            # Outside of the handler, whose error holds the frames that hold the memory.
            undo()
            self.encoder.zero_grad()
            if self.encoder.device.type == "cuda":
                torch.cuda.empty_cache()
            self.micro_batch_size = size // 2
            self.on_halving(self.micro_batch_size)

    def _add(self, inputs: Inputs, batch: Batch, precision: Precision) -> Taken:
        count = -(-batch.rows // self.micro_batch_size)
        if count == 1:
            return self._in_one_pass(inputs, batch, precision)
        return self._in_parts(inputs, batch, precision, count)

    def _in_one_pass(self, inputs: Inputs, batch: Batch, precision: Precision) -> Taken:
        embeddings = embed(self.encoder, inputs, precision)
        statistics: LossStatistics = self.loss(embeddings, batch)
        statistics.value.backward()  # type: ignore[no-untyped-call]
        return Taken(statistics, embeddings.detach(), self._padding([inputs]))

    def _in_parts(self, inputs: Inputs, batch: Batch, precision: Precision, count: int) -> Taken:
        parts = Parts.of(inputs, count)
        back = torch.from_numpy(parts.back).to(self.encoder.device)
        tables: list[Tensor] = []

        def loss(table: Tensor, _: Tensor) -> LossStatistics:
            embeddings = table[back]
            tables.append(embeddings.detach())
            statistics: LossStatistics = self.loss(embeddings, batch)
            return statistics

        cache = GradientCache(lambda rows: embed(self.encoder, rows, precision), micro_batch=1)
        # Which texts are alike is in the batch, not in labels of the cache's rows.
        statistics = cache(loss, parts, back)
        return Taken(statistics, tables[0], self._padding(parts.parts))

    def _padding(self, passes: Sequence[Rows]) -> float:
        if not isinstance(self.encoder, TextEncoder) or self.encoder.packs:
            return 0.0
        lengths = [[len(text) for text in texts] for texts in passes]
        return 1.0 - sum(map(sum, lengths)) / sum(len(each) * max(each) for each in lengths)
