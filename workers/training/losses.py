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
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from workers.training.comparison import Comparison, Hits, Objective, Reduction, compare, pair_weights
from workers.training.dense import dense_hits, dense_loss
from workers.training.loss_inputs import LossInputs, NonFiniteEmbeddingsError, checked, full_precision, unit_rows
from workers.training.loss_statistics import LossStatistics, count_zero_rows, tally
from workers.training.tiles import tiled_loss

__all__ = [
    "ContrastiveLoss",
    "LossStatistics",
    "Memory",
    "NTXentLoss",
    "NonFiniteEmbeddingsError",
    "Reduction",
    "SupConLoss",
    "pair_weights",
]

Memory = Literal["auto", "dense", "tiled"]

# Up to so many logits "auto" holds them all. Forward and backward on 2 CPU cores, float32, D = 128, 2 rows a label:
# 64 rows 1.0 ms dense and 1.4 ms tiled, 128: 1.5 and 1.8, 192: 2.7 and 3.0, 256: 4.5 and 3.5, 384: 8 and 4.4.
DENSE_LOGITS = 224 * 224


class _Sides(NamedTuple):
    """Unit rows and the columns they are compared with."""

    z: Tensor  # (R, D)
    y: Tensor  # (C, D)
    comparison: Comparison


class TalliedLoss(NamedTuple):
    """A loss and what adds up over its directions, and over processes that share its anchors."""

    value: Tensor
    tally: Tensor  # (8,) of a `Tally`
    rows_without_direction: Tensor  # scalar


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
        inputs = LossInputs(
            embeddings, labels, ref_emb, ref_labels, content_ids, ref_content_ids, anchor_offset, anchor_weights
        )
        with full_precision(embeddings):
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
        inputs = LossInputs(
            embeddings, labels, ref_emb, ref_labels, content_ids, ref_content_ids, anchor_offset, anchor_weights
        )
        return LossStatistics.of(*self.tallied(inputs), self.temperature)

    def tallied(self, inputs: LossInputs) -> TalliedLoss:
        """The statistics as they are before anything is averaged. See `forward`."""
        with full_precision(inputs.embeddings):
            sides = self._sides(inputs)
            value, hits = self._value(sides, with_hits=True)
            assert hits is not None  # noqa: S101 (they were asked for)
            # Where the rows are among the columns, these are all there are.
            tables = (sides.z, sides.y) if sides.comparison.own is None else (sides.y,)
            return TalliedLoss(value, tally(*sides, hits), count_zero_rows(*tables))

    def _sides(self, inputs: LossInputs) -> _Sides:
        inputs = checked(inputs)
        z = unit_rows(inputs.embeddings, self.eps)
        y = z if inputs.ref_emb is None else unit_rows(inputs.ref_emb, self.eps, "references")
        return _Sides(z, y, compare(inputs, self.objective, self.reduction, symmetric=self.symmetric))

    def _value(self, sides: _Sides, *, with_hits: bool = False) -> tuple[Tensor, Hits | None]:
        x, y, comparison = *self._scaled(sides), sides.comparison
        if self.memory == "dense" or (self.memory == "auto" and len(x) * len(y) <= DENSE_LOGITS):
            logits = x @ y.T
            return dense_loss(logits, comparison), dense_hits(logits.detach(), comparison) if with_hits else None
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
