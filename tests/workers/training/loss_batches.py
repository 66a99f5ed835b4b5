"""Batches that the losses are tested with, and how they are passed."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.workers.training.pair_by_pair import Batch, random_batch
from workers.training.losses import ContrastiveLoss, LossStatistics, NTXentLoss, SupConLoss

LOSSES = [NTXentLoss, SupConLoss]
REDUCTIONS = ["pair", "anchor", "class"]


def on_circle(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Six unit vectors with three, two and one of a label."""
    angles = torch.deg2rad(torch.tensor([0, 10, 20, 50, 60, 80], dtype=torch.float64))
    embeddings = torch.stack([angles.cos(), angles.sin()], dim=1).to(dtype)
    return embeddings.requires_grad_(), torch.tensor([0, 0, 0, 1, 1, 2])


def random_rows(seed: int, n: int = 12, d: int = 5, labels: int = 4) -> tuple[Tensor, Tensor]:
    batch = random_batch(seed, n, d, labels)
    return batch.embeddings, batch.labels


def value_of(loss: ContrastiveLoss, batch: Batch) -> Tensor:
    contents = {"content_ids": batch.content_ids, "ref_content_ids": batch.ref_content_ids}
    return loss(
        batch.embeddings,
        batch.labels,
        batch.ref_emb,
        batch.ref_labels,
        anchor_offset=batch.anchor_offset,
        **contents,
    )


def relative_error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact.double()).norm() / exact.double().norm())


def without_gradient(result: LossStatistics, embeddings: Tensor) -> bool:
    result.value.backward()
    return result.value.item() == 0 and bool((embeddings.grad == 0).all())
