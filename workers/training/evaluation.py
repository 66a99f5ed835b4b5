"""How good an encoder is on rows that it was not trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from encoders.loading import AnyEncoder
from workers.data.prepared import Prepared
from workers.training.batch_loss import BatchLoss
from workers.training.batches import Batches
from workers.training.inputs import select


@torch.no_grad()
def validation_loss(
    encoder: AnyEncoder,
    data: Prepared,
    loss: BatchLoss,
    *,
    batch_size: int,
    seed: int,
    before_batch: Callable[[], None] = lambda: None,
) -> float:
    """The loss over one epoch, without dropout: the mean over all pairs of all batches.

    The batches are those of the seed, so that two encoders are asked the same questions. The loss grows with
    the batch, having more negatives: compare equal batch sizes only. The encoder's mode is left as it was.

    Raises ValueError if the rows and the batch size make no batch; NonFiniteEmbeddingsError; what before_batch does.
    """
    total, pairs = 0.0, 0
    with _evaluating(encoder):
        for batch in Batches(data, batch_size=batch_size, seed=seed).epoch(0):
            before_batch()
            result = loss(encoder(select(data, batch.items)), batch)
            total += result.value.item() * result.pairs
            pairs += result.pairs
    return total / pairs


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)
