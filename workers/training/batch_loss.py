"""The loss of a step's batch, as a job asks for it: which texts are compared with which, and with which memory.

    symmetric null    every text with every other
    symmetric false   anchors with what may answer them, as queries with documents
    symmetric true    and what answers with the anchors

Contents are compared by their ids: one text is never a negative of itself, in whatever rows and files it stands.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from api_schemas.defaults import TEMPERATURE
from workers.training.batches import Batch
from workers.training.config import LossConfig
from workers.training.distributed import DistributedLoss
from workers.training.losses import ContrastiveLoss, LossStatistics, NTXentLoss, SupConLoss
from workers.training.memory_bank import CrossBatchMemory

LOSSES: dict[str, type[ContrastiveLoss]] = {"ntxent": NTXentLoss, "supcon": SupConLoss}
#: Within these a learnable temperature stays. CLIP's upper bound on 1/τ is 100; at τ = 1 all negatives weigh alike.
TEMPERATURE_BOUNDS = (0.01, 1.0)


class BatchLoss(nn.Module):
    """Takes a batch and its embeddings; its state, a learnable temperature and a memory, is in `state_dict`.

    dimension: D of the embeddings. warm_up: steps before the memory is asked. shared: each process of a group passes
    its part of a batch, and gets the loss of the whole one.

    Raises ValueError for a memory that is to be shared.
    """

    def __init__(self, config: LossConfig, *, dimension: int, warm_up: int = 0, shared: bool = False) -> None:
        super().__init__()
        if shared and config.memory_size:
            raise ValueError("memory_size must be 0 where several processes train together.")
        learnable = config.temperature == "learnable"
        self.loss = LOSSES[config.name](
            TEMPERATURE if config.temperature == "learnable" else config.temperature,
            reduction=config.reduction,
            symmetric=bool(config.symmetric),
            learnable_temperature=learnable,
            temperature_bounds=TEMPERATURE_BOUNDS,
        )
        self.directed = config.symmetric is not None
        self.shared = shared
        self.memory = (
            CrossBatchMemory(self.loss, dimension=dimension, size=config.memory_size, warm_up=warm_up)
            if config.memory_size
            else None
        )

    def forward(self, embeddings: Tensor, batch: Batch) -> LossStatistics:
        """The loss of embeddings (N, D), one for each text of the batch. Raises NonFiniteEmbeddingsError."""
        form = (self.memory or (DistributedLoss(self.loss) if self.shared else self.loss)).with_statistics
        labels, contents = torch.from_numpy(batch.labels), torch.from_numpy(batch.contents)
        if not self.directed:
            return form(embeddings, labels, content_ids=contents)
        asks = torch.from_numpy(batch.asks)
        asking, asked = asks.nonzero().flatten(), (~asks).nonzero().flatten()
        return form(
            embeddings[asking.to(embeddings.device)],
            labels[asking],
            embeddings[asked.to(embeddings.device)],
            labels[asked],
            content_ids=contents[asking],
            ref_content_ids=contents[asked],
        )

    def undo_point(self, texts: int) -> Callable[[], None]:
        """What takes back all that the next `forward`, of so many texts, changes."""
        return (lambda: None) if self.memory is None else self.memory.undo_point(texts)


def yardstick(config: LossConfig, *, dimension: int) -> BatchLoss:
    """The loss to compare encoders by: of a batch alone, at the temperature that training begins with."""
    fixed = TEMPERATURE if config.temperature == "learnable" else config.temperature
    return BatchLoss(replace(config, temperature=fixed, memory_size=0), dimension=dimension)
