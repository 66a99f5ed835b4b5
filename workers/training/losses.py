"""Contrastive losses: rows of one label are pulled together, all others pushed apart.

Letters: R rows that ask (anchors), C columns they are compared with: the references, or the rows themselves.
         D their width, P(i) columns with i's label, i itself not counted, N(i) columns with another.

Rows are divided by their length: z_i (R, D), y_j (C, D). With s_ij = z_i·y_j / τ and L_i = log Σ_{n∈N(i)} exp(s_in),
a pair (i, p) of one label costs

    NT-Xent   −log( exp(s_ip) / (exp(s_ip) + Σ_{n∈N(i)} exp(s_in)) ) = softplus(L_i − s_ip)
    SupCon    −log( exp(s_ip) / Σ_{j∈N(i)∪P(i)} exp(s_ij) )

NT-Xent leaves the anchor's other positives out of the denominator, SupCon (the form with the sum outside the
logarithm, L_out) has them in it: with one positive each the two are one. `reduction` says how pairs are averaged:

    pair      every ordered pair (i, p) counts the same: a label with k rows has k(k − 1) of them
    anchor    pairs are averaged for each anchor, then anchors that have a positive: that label counts k
    class     pairs are averaged for each label, then labels that have a pair: that label counts 1

Sources: Sohn 2016, "Improved Deep Metric Learning with Multi-class N-pair Loss Objective"; Oord et al. 2018,
"Representation Learning with Contrastive Predictive Coding" (InfoNCE: one direction, against references); Chen et
al. 2020, "A Simple Framework for Contrastive Learning of Visual Representations" (SimCLR, which names NT-Xent);
Khosla et al. 2020, "Supervised Contrastive Learning"; Radford et al. 2021, "Learning Transferable Visual Models From
Natural Language Supervision" (CLIP: both directions, a learnable temperature). Where a label has more than two rows,
pairs of NT-Xent are counted as in PyTorch Metric Learning.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workers.training.tiles import Comparison, Hits, Objective, tiled_loss

Memory = Literal["auto", "dense", "tiled"]
Reduction = Literal["pair", "anchor", "class"]

# Up to so many logits "auto" holds them all. Forward and backward on 2 CPU cores, float32, D = 128, 2 rows a label:
# 64 rows 1.0 ms dense and 1.4 ms tiled, 128: 1.5 and 1.8, 192: 2.7 and 3.0, 256: 4.5 and 3.5, 384: 8 and 4.4.
DENSE_LOGITS = 224 * 224
_LISTED_ROWS = 8


class NonFiniteEmbeddingsError(ValueError):
    """Rows of the embeddings hold NaN or infinity. `rows` has their numbers, from 0."""

    def __init__(self, rows: list[int], name: str = "embeddings") -> None:
        listed = ", ".join(map(str, rows[:_LISTED_ROWS]))
        more = f" and {len(rows) - _LISTED_ROWS} more" if len(rows) > _LISTED_ROWS else ""
        super().__init__(f"The {name} hold NaN or infinity in row {listed}{more}.")
        self.rows = rows


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


class _Sides(NamedTuple):
    """Unit rows and the columns they are compared with."""

    z: Tensor  # (R, D)
    y: Tensor  # (C, D)
    comparison: Comparison


class ContrastiveLoss(nn.Module):
    """What NTXentLoss and SupConLoss have in common; see the top of the module for the formulas.

    temperature: τ. With `learnable_temperature` where it starts: log τ is then a parameter, `log_temperature`,
        and τ is kept within `temperature_bounds`; a gradient that would push it out of them is 0.
    memory: "dense" holds the matrix of logits and leaves the gradient to autograd: O(R·C) memory, second
        derivatives. "tiled" computes both tile by tile: O((R + C)·D) memory, no second derivative. "auto" takes
        the faster: dense for small batches (`DENSE_LOGITS`), tiled for all others.
    reduction: "pair", "anchor" or "class", see above. None is the loss's own: "pair" for NT-Xent, "anchor" for
        SupCon.
    symmetric: with references, the mean of two losses: embeddings asking references, and references asking
        embeddings, each reduced by itself. Without references every row asks already, and nothing changes.
    eps: a row whose entries are all within it of 0 has no direction: its cosines are 0, its gradient too.
    tile_size: T, how many rows and columns a tile has at most. None: chosen from the shape.

    Raises ValueError for a number out of its range or an unknown name.
    """

    objective: ClassVar[Objective]
    own_reduction: ClassVar[Reduction]

    def __init__(
        self,
        temperature: float = 0.07,
        memory: Memory = "auto",
        reduction: Reduction | None = None,
        symmetric: bool = False,
        learnable_temperature: bool = False,
        eps: float = 1e-30,
        tile_size: int | None = None,
        *,
        temperature_bounds: tuple[float, float] = (0.01, 1.0),
    ) -> None:
        super().__init__()
        _check_options(temperature, memory, reduction, eps, tile_size)
        self.memory: Memory = memory
        self.reduction: Reduction = reduction or self.own_reduction
        self.symmetric = symmetric
        self.eps = eps
        self.tile_size = tile_size
        self.temperature_bounds = temperature_bounds
        self.log_temperature: nn.Parameter | None = None
        self._temperature = float(temperature)
        if learnable_temperature:
            low, high = temperature_bounds
            if not 0 < low <= temperature <= high < math.inf:
                raise ValueError(f"temperature must be within its bounds {low} and {high}, not {temperature}.")
            self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)))

    @property
    def temperature(self) -> float:
        """τ as it is now; a learnable one is read from its device."""
        if self.log_temperature is None:
            return self._temperature
        low, high = self.temperature_bounds
        return min(max(math.exp(self.log_temperature.item()), low), high)

    def extra_repr(self) -> str:
        learnable = " (learnable)" if self.log_temperature is not None else ""
        return (
            f"temperature={self.temperature:g}{learnable}, memory={self.memory}, reduction={self.reduction}, "
            f"symmetric={self.symmetric}, eps={self.eps:g}"
        )

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
        *,
        content_ids: Tensor | None = None,
        ref_content_ids: Tensor | None = None,
        anchor_offset: int | None = None,
        anchor_weights: Tensor | None = None,
    ) -> Tensor:
        """The loss, a scalar: float64 for float64 embeddings, float32 for any other floating type.

        embeddings (R, D) floating, labels (R,) integer: equal labels are alike. With ref_emb (C, D) and ref_labels
        (C,) the embeddings are compared with the references only, and every reference of an anchor's label is its
        positive. Labels and ids may be on the CPU wherever the embeddings are.

        content_ids (R,), ref_content_ids (C,) integer: rows of equal content are never negatives of one another,
        whatever their labels. Hash the inputs for them: dropout makes embeddings of equal inputs differ.
        anchor_offset: embedding i *is* reference anchor_offset + i, and not its own positive: for references that
        hold the embeddings too (a memory that has just taken them, a gathered batch).
        anchor_weights (R,): the weight of each pair of an anchor, instead of a reduction: the loss is then
        Σ_i weight_i Σ_p ℓ(i, p). See `pair_weights`. They are constants: no gradient reaches them.
        With either, only embeddings ask, symmetric or not.

        Without any pair the loss is 0 and so is its gradient; `with_statistics` tells the difference.

        Raises NonFiniteEmbeddingsError, ValueError for wrong shapes, devices or numbers, TypeError for wrong dtypes.
        """
        inputs = _Inputs(
            embeddings, labels, ref_emb, ref_labels, content_ids, ref_content_ids, anchor_offset, anchor_weights
        )
        with _full_precision(embeddings):
            return self._value(self._sides(inputs))[0]

    def with_statistics(
        self,
        embeddings: Tensor,
        labels: Tensor,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
        *,
        content_ids: Tensor | None = None,
        ref_content_ids: Tensor | None = None,
        anchor_offset: int | None = None,
        anchor_weights: Tensor | None = None,
    ) -> LossStatistics:
        """The same loss and what it was taken over, for one or two more looks at each logit. See `forward`."""
        inputs = _Inputs(
            embeddings, labels, ref_emb, ref_labels, content_ids, ref_content_ids, anchor_offset, anchor_weights
        )
        with _full_precision(embeddings):
            sides = self._sides(inputs)
            value, hits = self._value(sides, with_hits=True)
            assert hits is not None  # noqa: S101 (they were asked for)
            return _describe(value, hits, sides, self.temperature)

    def _sides(self, inputs: _Inputs) -> _Sides:
        inputs = _checked(inputs)
        z = unit_rows(inputs.embeddings, self.eps)
        y = z if inputs.ref_emb is None else unit_rows(inputs.ref_emb, self.eps, "references")
        return _Sides(z, y, _compare(inputs, self.objective, self.reduction, symmetric=self.symmetric))

    def _value(self, sides: _Sides, *, with_hits: bool = False) -> tuple[Tensor, Hits | None]:
        x, y, comparison = *self._scaled(sides), sides.comparison
        if self.memory == "dense" or (self.memory == "auto" and len(x) * len(y) <= DENSE_LOGITS):
            logits = x @ y.T
            return _dense_loss(logits, comparison), _dense_hits(logits.detach(), comparison) if with_hits else None
        return tiled_loss(x, y, comparison, largest=1 / self.temperature, tile_size=self.tile_size, with_hits=with_hits)

    def _scaled(self, sides: _Sides) -> tuple[Tensor, Tensor]:
        """z/√τ and y/√τ, whose products are the logits."""
        if self.log_temperature is None:
            scale: Tensor | float = self._temperature**-0.5
        else:
            low, high = map(math.log, self.temperature_bounds)
            log_temperature: Tensor = _Bounded.apply(self.log_temperature, low, high)  # type: ignore[no-untyped-call]
            scale = torch.exp(-0.5 * log_temperature).to(sides.z)
        x = sides.z * scale
        return x, x if sides.comparison.same else sides.y * scale


class NTXentLoss(ContrastiveLoss):
    """NT-Xent over cosine similarity, softplus(L_i − s_ip): other positives are not in the denominator."""

    objective = "ntxent"
    own_reduction = "pair"


class SupConLoss(ContrastiveLoss):
    """SupCon (L_out) over cosine similarity: every other row is in the denominator."""

    objective = "supcon"
    own_reduction = "anchor"


# Inputs


class _Inputs(NamedTuple):
    """What a caller may pass; after `_checked` on one device, of one dtype."""

    embeddings: Tensor
    labels: Tensor
    ref_emb: Tensor | None
    ref_labels: Tensor | None
    content_ids: Tensor | None
    ref_content_ids: Tensor | None
    anchor_offset: int | None
    anchor_weights: Tensor | None


def _check_options(temperature: float, memory: str, reduction: str | None, eps: float, tile_size: int | None) -> None:
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be a positive finite number, not {temperature}.")
    if not 0 <= eps < math.inf:
        raise ValueError(f"eps must be 0 or a positive finite number, not {eps}.")
    if memory not in get_args(Memory):
        raise ValueError(f"memory must be one of {', '.join(get_args(Memory))}, not {memory!r}.")
    if reduction is not None and reduction not in get_args(Reduction):
        raise ValueError(f"reduction must be one of {', '.join(get_args(Reduction))}, not {reduction!r}.")
    if tile_size is not None and tile_size < 1:
        raise ValueError(f"tile_size must be 1 or more, not {tile_size}.")


def _checked(inputs: _Inputs) -> _Inputs:
    """The inputs in full precision and on the embeddings' device."""
    embeddings, labels, ref_emb, ref_labels, content_ids, ref_content_ids, anchor_offset, anchor_weights = inputs
    if (ref_emb is None) != (ref_labels is None):
        raise ValueError("ref_emb and ref_labels go together: pass both or neither.")
    if (ref_content_ids is None) != (content_ids is None or ref_emb is None):
        raise ValueError("content_ids and ref_content_ids go together wherever there are references.")
    if anchor_offset is not None and ref_emb is None:
        raise ValueError("anchor_offset is a place among the references, and there are none.")
    _check_table("embeddings", embeddings)
    dtype = embeddings.dtype
    if ref_emb is not None:
        _check_table("ref_emb", ref_emb)
        if ref_emb.shape[1] != embeddings.shape[1] or ref_emb.device != embeddings.device:
            raise ValueError(
                f"ref_emb must have the width and device of the embeddings, {embeddings.shape[1]} on "
                f"{embeddings.device}, not {ref_emb.shape[1]} on {ref_emb.device}."
            )
        dtype = torch.promote_types(dtype, ref_emb.dtype)
    dtype = torch.promote_types(dtype, torch.float32)
    columns = embeddings if ref_emb is None else ref_emb
    return _Inputs(
        embeddings.to(dtype),
        _integers("labels", labels, embeddings),
        None if ref_emb is None else ref_emb.to(dtype),
        None if ref_labels is None else _integers("ref_labels", ref_labels, columns),
        None if content_ids is None else _integers("content_ids", content_ids, embeddings),
        None if ref_content_ids is None else _integers("ref_content_ids", ref_content_ids, columns),
        anchor_offset,
        None if anchor_weights is None else _shares(anchor_weights, embeddings).to(dtype),
    )


def _check_table(name: str, values: Tensor) -> None:
    if values.ndim != 2 or values.shape[1] == 0:
        raise ValueError(f"{name} must have shape (n, d) with d ≥ 1, not {tuple(values.shape)}.")
    if not values.is_floating_point():
        raise TypeError(f"{name} must be floating point, not {values.dtype}.")


def _integers(name: str, values: Tensor, rows: Tensor) -> Tensor:
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise TypeError(f"{name} must be integers, not {values.dtype}.")
    return _one_a_row(name, values, rows).to(torch.int64)


def _one_a_row(name: str, values: Tensor, rows: Tensor) -> Tensor:
    if values.shape != rows.shape[:1]:
        raise ValueError(f"{name} must have shape ({len(rows)},), one for each row, not {tuple(values.shape)}.")
    if values.device not in (rows.device, torch.device("cpu")):
        raise ValueError(f"{name} must be on {rows.device}, where the embeddings are, or the CPU, not {values.device}.")
    return values.to(rows.device)


def _shares(weights: Tensor, rows: Tensor) -> Tensor:
    if not ((weights >= 0) & (weights < math.inf)).all():
        raise ValueError("anchor_weights must be finite and 0 or more.")
    return _one_a_row("anchor_weights", weights.detach(), rows)


def _places(offset: int, rows: Tensor, columns: Tensor) -> Tensor:
    """Which columns the rows are, (R,)."""
    if offset < 0 or not torch.equal(columns[offset : offset + len(rows)], rows):
        raise ValueError(f"From reference {offset} on, the references must have the labels of the embeddings.")
    return torch.arange(offset, offset + len(rows), device=rows.device)


def _full_precision(embeddings: Tensor) -> torch.autocast:
    """Half precision rounds logits of 1/τ to steps of 0.01 and more: autocast must not reach inside."""
    return torch.autocast(device_type=embeddings.device.type, enabled=False)


def unit_rows(embeddings: Tensor, eps: float, name: str = "embeddings") -> Tensor:
    """Each row of (R, D) over its Euclidean norm; rows within `eps` of 0 become 0 and take no gradient.

    Raises NonFiniteEmbeddingsError.
    """
    # Dividing by the largest entry first keeps the sum of squares from overflowing (float32: from 2e19 on) or
    # vanishing. The gradient need not know: the result does not depend on a row's scale.
    peaks = embeddings.detach().abs().amax(dim=1, keepdim=True)  # NaN and infinity come through
    if not peaks.isfinite().all():
        raise NonFiniteEmbeddingsError((~peaks.flatten().isfinite()).nonzero().flatten().tolist(), name)
    directed = peaks > max(eps, torch.finfo(peaks.dtype).tiny)
    scaled = embeddings * torch.where(directed, 1 / peaks, 0.0)
    # A scaled row has norm 1 at least, or 0; any bound between the two only guards the zeros.
    norms: Tensor = torch.linalg.vector_norm(scaled, dim=1, keepdim=True).clamp_min(0.5)
    return scaled / norms


class _Bounded(torch.autograd.Function):
    """A clamp whose gradient is 0 only where a step along it would lead further out."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward(value)
        ctx.bounds = low, high
        return value.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, *outputs: Any) -> tuple[Tensor, None, None]:
        (gradient,), (value,), (low, high) = outputs, ctx.saved_tensors, ctx.bounds
        outwards = ((value <= low) & (gradient > 0)) | ((value >= high) & (gradient < 0))
        return gradient.masked_fill(outwards, 0.0), None, None


# Who is compared with whom


def _compare(inputs: _Inputs, objective: Objective, reduction: Reduction, *, symmetric: bool) -> Comparison:
    classes, rows, columns = _numbered(inputs.labels, inputs.ref_labels)
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


def _numbered(rows: Tensor, columns: Tensor | None) -> tuple[int, Tensor, Tensor]:
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
    inputs: _Inputs, classes: int, rows: Tensor, columns: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """Contents that occur under two labels, by number; −1 and −2 for all others, which hide no false negative."""
    if inputs.content_ids is None:
        return None, None
    count, row_contents, column_contents = _numbered(inputs.content_ids, inputs.ref_content_ids)
    labelled = torch.cat([row_contents * classes + rows, column_contents * classes + columns])
    ambiguous = torch.bincount(torch.unique(labelled) // max(classes, 1), minlength=count) > 1
    if not ambiguous.any():
        return None, None
    return (
        torch.where(ambiguous[row_contents], row_contents, -1),
        torch.where(ambiguous[column_contents], column_contents, -2),
    )


# All logits at once


def _dense_loss(logits: Tensor, comparison: Comparison) -> Tensor:
    """The definition, on logits (R, C), for autograd to differentiate, twice if need be."""
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


def _dense_hits(logits: Tensor, comparison: Comparison) -> Hits:
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


# Statistics


class _Group(NamedTuple):
    """Rows and columns of equal numbers: the sum of their cosines, and how many of the other side each one meets."""

    cosines: Tensor  # ()
    of_rows: Tensor  # (R,)
    of_columns: Tensor  # (C,)


def _grouped(z: Tensor, y: Tensor, rows: Tensor, columns: Tensor) -> _Group:
    """With sums Z_g and Y_g of the unit rows of number g, cosines add up to Σ_g Z_g·Y_g: no (R, C) matrix is needed."""
    count, rows, columns = _numbered(rows, columns)
    sums = [side.new_zeros(count, side.shape[1]).index_add_(0, to, side) for side, to in ((z, rows), (y, columns))]
    of_rows = torch.bincount(columns, minlength=count)[rows]
    return _Group((sums[0] * sums[1]).sum(), of_rows, torch.bincount(rows, minlength=count)[columns])


def _describe(value: Tensor, hits: Hits, sides: _Sides, temperature: float) -> LossStatistics:
    """Count the pairs and average their cosines."""
    z, y, comparison = sides.z.detach(), sides.y.detach(), sides.comparison
    alike = _grouped(z, y, comparison.row_classes, comparison.column_classes)
    barred = _barred(z, y, comparison, alike)
    own = torch.zeros((), device=z.device) if comparison.own is None else (z * y[comparison.own]).sum()
    positives = alike.of_rows - int(comparison.own is not None)
    counts = [positives.sum(), (positives < 1).sum(), (barred.of_rows == len(y)).sum(), hits.rows.sum()]
    if hits.columns is not None:
        more = [positives.sum(), (alike.of_columns < 1).sum(), (barred.of_columns == len(z)).sum(), hits.columns.sum()]
        counts = [a + b for a, b in zip(counts, more, strict=True)]
    tables = (z,) if comparison.same else (z, y)
    zeros = torch.stack([(table == 0).all(dim=1).sum() for table in tables]).sum()
    # One transfer for the counts and one for the sums, since each waits for the device.
    pairs, lone, unopposed, hit, without_direction, once, barred_pairs = torch.stack(
        [*counts, zeros, positives.sum(), barred.of_rows.sum()]
    ).tolist()
    every = z.sum(dim=0) @ y.sum(dim=0)
    positive_sum, negative_sum = torch.stack([alike.cosines - own, every - barred.cosines]).tolist()
    negatives = len(z) * len(y) - barred_pairs
    anchors = len(z) + (0 if hits.columns is None else len(y)) - lone
    return LossStatistics(
        value=value,
        pairs=pairs,
        anchors_without_positives=lone,
        anchors_without_negatives=unopposed,
        rows_without_direction=without_direction,
        positive_cosine=positive_sum / once if once else None,
        negative_cosine=negative_sum / negatives if negatives else None,
        accuracy=hit / anchors if anchors else None,
        temperature=temperature,
    )


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
