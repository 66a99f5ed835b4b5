"""What a contrastive loss was taken over: counts of pairs and anchors, and their cosines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from workers.training.comparison import Comparison, Hits, numbered

Number = TypeVar("Number", float, Tensor)


@dataclass(frozen=True)
class LossStatistics:
    """The loss of a batch and what it was taken over.

    Anchors are the embeddings; with references and both directions, the references too. An anchor without
    positives adds nothing to the loss; one without negatives adds zeros (SupCon: what its positives cost one
    another).
    """

    value: Tensor  # scalar, carries the gradient
    pairs: int  # ordered pairs (i, p), each a term of the loss
    anchors_without_positives: int
    anchors_without_negatives: int
    rows_without_direction: int  # rows of zeros, references included, whose cosine to every other row counts as 0
    positive_cosine: float | None  # mean over those pairs; None: there are none
    negative_cosine: float | None  # mean over pairs of two labels, known false negatives not counted
    accuracy: float | None  # share of anchors with positives whose nearest column is one of them
    temperature: float

    @staticmethod
    def of(value: Tensor, tally: Tensor, rows_without_direction: Tensor, temperature: float) -> LossStatistics:
        """From what `tally` counted, (8,), over the whole loss."""
        # One transfer, since each waits for the device.
        *numbers, without_direction = torch.cat([tally, rows_without_direction.to(tally).view(1)]).tolist()
        found = Tally(*numbers)
        return LossStatistics(
            value=value,
            pairs=int(found.pairs),
            anchors_without_positives=int(found.anchors_without_positives),
            anchors_without_negatives=int(found.anchors_without_negatives),
            rows_without_direction=int(without_direction),
            positive_cosine=found.positive_cosines / found.pairs if found.pairs else None,
            negative_cosine=found.negative_cosines / found.negatives if found.negatives else None,
            accuracy=found.hits / found.anchors_with_positives if found.anchors_with_positives else None,
            temperature=temperature,
        )


class Tally(NamedTuple, Generic[Number]):
    """Sums over anchors: those of two directions, or of the parts of a batch, add up to those of the whole."""

    pairs: Number
    negatives: Number  # ordered pairs of two labels, known false negatives not counted
    anchors_with_positives: Number
    anchors_without_positives: Number
    anchors_without_negatives: Number
    hits: Number
    positive_cosines: Number
    negative_cosines: Number


def tally(z: Tensor, y: Tensor, comparison: Comparison, hits: Hits) -> Tensor:
    """The numbers of a `Tally`, (8,) float64, on the device: of unit rows z (R, D) and y (C, D)."""
    z, y = z.detach(), y.detach()
    alike = _grouped(z, y, comparison.row_classes, comparison.column_classes)
    barred = _barred(z, y, comparison, alike)
    positives, cosines = alike.of_rows, alike.cosines
    if comparison.own is not None:
        positives, cosines = positives - 1, cosines - (z * y[comparison.own]).sum()
    sums = cosines, z.sum(dim=0) @ y.sum(dim=0) - barred.cosines
    numbers = _of_anchors(positives, len(y) - barred.of_rows, hits.rows, *sums)
    if hits.columns is not None:
        numbers += _of_anchors(alike.of_columns, len(z) - barred.of_columns, hits.columns, *sums)
    return numbers


def _of_anchors(
    positives: Tensor, negatives: Tensor, hits: Tensor, positive_cosines: Tensor, negative_cosines: Tensor
) -> Tensor:
    """One direction's; positives |P(i)| (n,), negatives |N(i)| (n,), hits (n,) bool."""
    numbers = Tally(
        pairs=positives.sum(),
        negatives=negatives.sum(),
        anchors_with_positives=(positives > 0).sum(),
        anchors_without_positives=(positives == 0).sum(),
        anchors_without_negatives=(negatives == 0).sum(),
        hits=hits.sum(),
        positive_cosines=positive_cosines,
        negative_cosines=negative_cosines,
    )
    return torch.stack([number.to(torch.float64) for number in numbers])


def count_zero_rows(*tables: Tensor) -> Tensor:
    """How many unit rows (n, D) have no direction, a scalar on the device."""
    return torch.stack([(table == 0).all(dim=1).sum() for table in tables]).sum()


class _Group(NamedTuple):
    """Rows and columns of equal numbers: the sum of their cosines, and how many of the other side each one meets."""

    cosines: Tensor  # ()
    of_rows: Tensor  # (R,)
    of_columns: Tensor  # (C,)


def _grouped(z: Tensor, y: Tensor, rows: Tensor, columns: Tensor) -> _Group:
    """With sums Z_g and Y_g of the unit rows of number g, cosines add up to Σ_g Z_g·Y_g: no (R, C) matrix is needed."""
    count, rows, columns = numbered(rows, columns)
    sums = [side.new_zeros(count, side.shape[1]).index_add_(0, to, side) for side, to in ((z, rows), (y, columns))]
    of_rows = torch.bincount(columns, minlength=count)[rows]
    return _Group((sums[0] * sums[1]).sum(), of_rows, torch.bincount(rows, minlength=count)[columns])


def _barred(z: Tensor, y: Tensor, comparison: Comparison, alike: _Group) -> _Group:
    """Rows and columns that are no negatives of one another: of one label, of one content, or both."""
    rows, columns = comparison.row_contents, comparison.column_contents
    if rows is None or columns is None:
        return alike
    known = _grouped(z, y, rows, columns)
    # −1 and −2, the contents of rows and columns without doubt, are multiplied apart as well.
    labelled = (
        rows * comparison.classes + comparison.row_classes,
        columns * comparison.classes + comparison.column_classes,
    )
    both = _grouped(z, y, *labelled)
    return _Group(*(a + b - c for a, b, c in zip(alike, known, both, strict=True)))
