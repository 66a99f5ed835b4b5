"""Who is compared in the loss benchmark, and on what.

Letters: N rows, D their width, K rows of each label.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.training.comparison import Objective
from workers.training.losses import NTXentLoss, SupConLoss

TEMPERATURE = 0.07

Loss = Callable[[Tensor, Tensor], Tensor]
Name = Literal["tiled", "dense", "autograd", "pml-supcon", "pml-ntxent"]


class Case(NamedTuple):
    """One measurement: an implementation on one kind of batch."""

    name: Name
    rows: int
    width: int
    per_label: int
    dtype: str = "float32"


class Contestant(NamedTuple):
    """An implementation, and how large a batch it can be given."""

    title: str
    objective: Objective
    make: Callable[[], Loss]
    most_rows: int | None  # beyond, it takes too long
    bytes_needed: Callable[[Case], int]  # about, at its peak, float32; never too low by much


class Outcome(NamedTuple):
    """What a loss says of a batch."""

    value: Tensor  # scalar
    gradient: Tensor  # (N, D)


def autograd_ntxent(embeddings: Tensor, labels: Tensor) -> Tensor:
    """NT-Xent in plain PyTorch, with the care of somebody who knows what costs: the yardstick.

    embeddings (N, D), labels (N,). The N×N logits are made once and masked in place, the temperature divides N·D
    numbers instead of N², and only pairs of one label, not all N², go through softplus.
    """
    z = F.normalize(embeddings.to(torch.promote_types(embeddings.dtype, torch.float32)), dim=1)
    same = labels[:, None] == labels[None, :]
    anchors, positives = same.clone().fill_diagonal_(False).nonzero(as_tuple=True)
    logits = (z / TEMPERATURE) @ z.T
    log_negatives = logits.masked_fill_(same, -torch.inf).logsumexp(dim=1)
    pairs = (z[anchors] * z[positives]).sum(dim=1) / TEMPERATURE
    return F.softplus(log_negatives[anchors] - pairs).mean()


def _pml(name: str) -> Loss:
    # Here, since it brings in SciPy and scikit-learn, which those who do without it need not wait for.
    from pytorch_metric_learning import losses

    return cast(Loss, getattr(losses, name)(temperature=TEMPERATURE))


def _matrices(count: int) -> Callable[[Case], int]:
    """So many N×N matrices of float32."""
    return lambda case: count * 4 * case.rows**2


CONTESTANTS: dict[Name, Contestant] = {
    "tiled": Contestant(
        "Likeness tiled",
        "ntxent",
        lambda: NTXentLoss(TEMPERATURE, memory="tiled"),
        None,
        lambda case: 24 * case.rows * case.width,
    ),
    "dense": Contestant(
        "Likeness dense", "ntxent", lambda: NTXentLoss(TEMPERATURE, memory="dense"), 8192, _matrices(9)
    ),
    "autograd": Contestant("plain autograd", "ntxent", lambda: autograd_ntxent, 8192, _matrices(6)),
    "pml-supcon": Contestant("PML SupConLoss", "supcon", lambda: _pml("SupConLoss"), 8192, _matrices(12)),
    # For each of its N(K − 1) pairs a row of all N(N − K) pairs of two labels, several times over.
    "pml-ntxent": Contestant(
        "PML NTXentLoss",
        "ntxent",
        lambda: _pml("NTXentLoss"),
        1024,
        lambda case: 17 * (case.per_label - 1) * case.rows**3,
    ),
}


def batch(rows: int, width: int, per_label: int, dtype: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Embeddings (N, D), always the same for the same arguments, and labels (N,): K views of N/K items in turn."""
    generator = torch.Generator().manual_seed(rows + width)
    labels = torch.arange(rows // per_label).repeat(per_label)
    centres = torch.randn(rows // per_label, width, generator=generator)
    embeddings = centres[labels] + torch.randn(rows, width, generator=generator)
    typed = embeddings.to(device, cast(torch.dtype, getattr(torch, dtype)))
    return typed.requires_grad_(), labels.to(device)


def outcome(loss: Loss, embeddings: Tensor, labels: Tensor) -> Outcome:
    """Forward and backward: what is measured."""
    value = loss(embeddings, labels)
    (gradient,) = torch.autograd.grad(value, embeddings)
    return Outcome(value.detach(), gradient)


def reference_supcon() -> Loss:
    """What PML's SupConLoss is checked against where a label has more than two rows and NT-Xent is another loss."""
    return SupConLoss(TEMPERATURE, memory="tiled")
