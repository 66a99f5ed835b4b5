"""Who is compared with whom in a contrastive loss, and what each pair counts: labels and contents as numbers.

Letters: those of `losses.py`: R rows that ask (anchors), C columns they are compared with, P(i) columns of i's label.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from workers.training.loss_inputs import LossInputs

Objective = Literal["ntxent", "supcon"]
Reduction = Literal["pair", "anchor", "class"]


@dataclass(frozen=True)
class Comparison:
    """Who is compared with whom. Classes and contents are numbered from 0; equal numbers are equal things."""

    objective: Objective
    classes: int  # how many
    row_classes: Tensor  # (R,)
    column_classes: Tensor  # (C,)
    row_weights: Tensor  # (R,) of each pair (i, p)
    column_weights: Tensor | None = None  # (C,) of each pair (p, i), where columns ask too
    row_contents: Tensor | None = None  # (R,) equal contents are never negatives
    column_contents: Tensor | None = None  # (C,)
    own: Tensor | None = None  # (R,) which column is the row itself, and so none of its positives
    same: bool = False  # the columns are the rows: `own` is 0, 1, …, and y is x


class Hits(NamedTuple):
    """Whether an anchor's nearest positive is nearer than its nearest negative; false without a positive."""

    rows: Tensor  # (R,) bool
    columns: Tensor | None  # (C,) bool, where columns ask too


def compare(inputs: LossInputs, objective: Objective, reduction: Reduction, *, symmetric: bool) -> Comparison:
    """Of inputs that `checked` returned. Raises ValueError if the anchors are not where anchor_offset says."""
    classes, rows, columns = numbered(inputs.labels, inputs.ref_labels)
    same = inputs.ref_emb is None
    offset = 0 if same else inputs.anchor_offset
    own = None if offset is None else _places(offset, rows, columns)

    def weights(asking: Tensor, asked: Tensor) -> Tensor:
        positives = torch.bincount(asked, minlength=classes)[asking] - int(own is not None)
        return pair_weights(asking, classes, positives, reduction, inputs.embeddings.dtype)

    row_weights = weights(rows, columns) if inputs.anchor_weights is None else inputs.anchor_weights
    column_weights = None
    if symmetric and own is None and inputs.anchor_weights is None:
        row_weights, column_weights = row_weights / 2, weights(columns, rows) / 2
    contents = _known_false_negatives(inputs, classes, rows, columns)
    return Comparison(objective, classes, rows, columns, row_weights, column_weights, *contents, own=own, same=same)


def numbered(rows: Tensor, columns: Tensor | None) -> tuple[int, Tensor, Tensor]:
    """How many different values there are, and each by its number."""
    every = rows if columns is None else torch.cat([rows, columns])
    values, numbers = torch.unique(every, return_inverse=True)
    return len(values), numbers[: len(rows)], numbers if columns is None else numbers[len(rows) :]


def pair_weights(classes: Tensor, count: int, positives: Tensor, reduction: Reduction, dtype: torch.dtype) -> Tensor:
    """The weight of each pair of each anchor, (R,): the loss is Σ_i weight_i Σ_p ℓ(i, p). 0 without positives.

    classes (R,), numbers below `count`; positives |P(i)| (R,).
    """
    counts = positives.to(dtype)
    if reduction == "pair":
        share = counts.sum().expand_as(counts)
    elif reduction == "anchor":
        share = counts * (counts > 0).sum()
    else:
        pairs_of_class = counts.new_zeros(count).index_add_(0, classes, counts)
        share = pairs_of_class[classes] * (pairs_of_class > 0).sum()
    return (counts > 0) / share.clamp_min(1)


def _known_false_negatives(
    inputs: LossInputs, classes: int, rows: Tensor, columns: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """Contents that occur under two labels, by number; −1 and −2 for all others, which hide no false negative."""
    if inputs.content_ids is None:
        return None, None
    count, row_contents, column_contents = numbered(inputs.content_ids, inputs.ref_content_ids)
    labelled = torch.cat([row_contents * classes + rows, column_contents * classes + columns])
    ambiguous = torch.bincount(torch.unique(labelled) // max(classes, 1), minlength=count) > 1
    if not ambiguous.any():
        return None, None
    return (
        torch.where(ambiguous[row_contents], row_contents, -1),
        torch.where(ambiguous[column_contents], column_contents, -2),
    )


def _places(offset: int, rows: Tensor, columns: Tensor) -> Tensor:
    """Which columns the rows are, (R,)."""
    if offset < 0 or not torch.equal(columns[offset : offset + len(rows)], rows):
        raise ValueError(f"From reference {offset} on, the references must have the labels of the embeddings.")
    return torch.arange(offset, offset + len(rows), device=rows.device)
