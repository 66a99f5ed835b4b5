"""Contrastive losses of a matrix of logits that is held: the definition, for autograd to differentiate."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.training.comparison import Comparison, Hits, Objective


def dense_loss(logits: Tensor, comparison: Comparison) -> Tensor:
    """The loss of logits (R, C), a scalar that may be differentiated twice."""
    positives, negatives = _masks(comparison)
    value = _one_direction(logits, positives, negatives, comparison.row_weights, comparison.objective)
    if comparison.column_weights is None:
        return value
    columns_ask = logits.T, positives.T, negatives.T, comparison.column_weights, comparison.objective
    return value + _one_direction(*columns_ask)


def _one_direction(
    logits: Tensor, positives: Tensor, negatives: Tensor, weights: Tensor, objective: Objective
) -> Tensor:
    others = negatives if objective == "ntxent" else negatives | positives
    # The lowest finite number stands for −∞: it vanishes beside any logit, and where an anchor has no negatives
    # at all the loss and its gradient come out as 0, while −∞ − (−∞) would be NaN.
    lowest = torch.finfo(logits.dtype).min
    denominators = torch.logsumexp(logits.masked_fill(~others, lowest), dim=1, keepdim=True)
    margins = logits - denominators
    # softplus(−x) as −logsigmoid(x), which has no threshold beyond which it is only roughly right.
    terms = -F.logsigmoid(margins) if objective == "ntxent" else -margins
    return (terms.masked_fill(~positives, 0.0) * weights[:, None]).sum()


def dense_hits(logits: Tensor, comparison: Comparison) -> Hits:
    """Which anchors hit."""
    positives, negatives = _masks(comparison)
    positive = logits.masked_fill(~positives, -math.inf)
    negative = logits.masked_fill(~negatives, -math.inf)
    rows, columns = (
        positive.amax(dim) > negative.amax(dim) if logits.numel() else logits.sum(dim) > 0 for dim in (1, 0)
    )
    return Hits(rows, None if comparison.column_weights is None else columns)


def _masks(comparison: Comparison) -> tuple[Tensor, Tensor]:
    """Which (i, j) are pairs of one label, and which are negatives."""
    alike = comparison.row_classes[:, None] == comparison.column_classes
    negatives = ~alike
    if comparison.row_contents is not None and comparison.column_contents is not None:
        negatives &= comparison.row_contents[:, None] != comparison.column_contents
    if comparison.own is not None:
        alike.scatter_(1, comparison.own[:, None], False)
    return alike, negatives
