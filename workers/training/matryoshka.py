"""Vectors that can be cut: the loss of a batch, taken over several prefixes of its embeddings.

    L = Σ_{d ∈ dims} loss(embeddings[:, :d])

Each prefix is normalised by itself, as it is when it is used. All weigh the same.

Source: Kusupati et al. 2022, "Matryoshka Representation Learning".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from workers.training.batch_loss import BatchLoss
from workers.training.batches import Batch
from workers.training.config import LossConfig, TrainingConfig
from workers.training.losses import ContrastiveLoss, LossStatistics


class MatryoshkaLoss(nn.Module):
    """A `BatchLoss` for each of `dims`, the embeddings' own among them in any case.

    Each has a memory of its own and, where it is learnable, a temperature: short vectors want another one. The
    statistics are those of whole embeddings, but for the value.

    Raises ValueError for dims that are not within 1 and `dimension`, and what BatchLoss raises.
    """

    def __init__(
        self, config: LossConfig, *, dims: Sequence[int], dimension: int, warm_up: int = 0, shared: bool = False
    ) -> None:
        super().__init__()
        if not all(1 <= dim <= dimension for dim in dims):
            raise ValueError(f"dims must be within 1 and {dimension}, not {list(dims)}.")
        self.dims = sorted({*dims, dimension})
        self.losses = nn.ModuleList(
            BatchLoss(config, dimension=dim, warm_up=warm_up, shared=shared) for dim in self.dims
        )

    @property
    def loss(self) -> ContrastiveLoss:
        """The loss of whole embeddings."""
        return cast(BatchLoss, self.losses[-1]).loss

    def forward(self, embeddings: Tensor, batch: Batch) -> LossStatistics:
        """The loss of embeddings (N, D), one for each text of the batch. Raises NonFiniteEmbeddingsError."""
        found: list[LossStatistics] = [
            loss(embeddings[:, :dim], batch) for loss, dim in zip(self.losses, self.dims, strict=True)
        ]
        return replace(found[-1], value=torch.stack([each.value for each in found]).sum())

    def undo_point(self, texts: int) -> Callable[[], None]:
        """What takes back all that the next `forward`, of so many texts, changes."""
        undos = [cast(BatchLoss, loss).undo_point(texts) for loss in self.losses]

        def undo() -> None:
            for each in undos:
                each()

        return undo


#: What a step takes the gradient of.
AnyLoss = BatchLoss | MatryoshkaLoss


def loss_of(config: TrainingConfig, *, dimension: int, warm_up: int, shared: bool) -> AnyLoss:
    """The loss that a run asks for, of embeddings of `dimension` numbers; `warm_up` and `shared` as in BatchLoss."""
    if config.matryoshka_dims:
        return MatryoshkaLoss(
            config.loss, dims=config.matryoshka_dims, dimension=dimension, warm_up=warm_up, shared=shared
        )
    return BatchLoss(config.loss, dimension=dimension, warm_up=warm_up, shared=shared)
