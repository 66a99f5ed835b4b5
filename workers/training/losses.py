"""NT-Xent: the loss that pulls rows of one label together and pushes all others apart.

Letters: N rows, D their width, M ordered pairs of rows that share a label.

For unit rows z, cosines over the temperature s_ij = z_i·z_j / τ and L_i = log Σ_n exp(s_in) over the rows n
of another label than i, a pair (i, p) of one label costs

    ℓ(i, p) = −log( exp(s_ip) / (exp(s_ip) + Σ_n exp(s_in)) ) = softplus(L_i − s_ip)

and the loss is the mean of ℓ over all M ordered pairs. The other positives of i are not in its denominator.

Sources: Sohn 2016, "Improved Deep Metric Learning with Multi-class N-pair Loss Objective"; Oord et al.
2018, "Representation Learning with Contrastive Predictive Coding"; Chen et al. 2020, "A Simple Framework for
Contrastive Learning of Visual Representations" (SimCLR), which names it. With more than two rows a label each
ordered pair is a term of its own, as in PyTorch Metric Learning.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LISTED_ROWS = 8


class NonFiniteEmbeddingsError(ValueError):
    """Rows of the embeddings hold NaN or infinity. `rows` has their numbers, from 0."""

    def __init__(self, rows: list[int]) -> None:
        listed = ", ".join(map(str, rows[:_LISTED_ROWS]))
        more = f" and {len(rows) - _LISTED_ROWS} more" if len(rows) > _LISTED_ROWS else ""
        super().__init__(f"The embeddings hold NaN or infinity in row {listed}{more}.")
        self.rows = rows


@dataclass(frozen=True)
class NTXentResult:
    """The loss of a batch and what it was taken over.

    An anchor without positives adds nothing to the loss; one without negatives adds zeros.
    """

    value: Tensor  # scalar, carries the gradient
    pairs: int  # M
    anchors_without_positives: int
    anchors_without_negatives: int
    rows_without_direction: int  # rows of zeros, whose cosine to every other row counts as 0
    positive_cosine: float | None  # mean over pairs of one label, a row with itself not counted; None: no such pair
    negative_cosine: float | None  # mean over pairs of two labels; None: no such pair
    temperature: float


class _Pass(NamedTuple):
    """What the forward pass leaves behind for the statistics."""

    value: Tensor  # ()
    units: Tensor  # (N, D)
    labels: Tensor  # (N,)


class NTXentLoss(nn.Module):
    """NT-Xent over cosine similarity; see the top of the module for the formula.

    Embeddings are normalised inside, so scaling a row by a positive number changes nothing. A row whose
    entries are all within `eps` of 0 has no direction: its cosines are 0 and it receives no gradient.

    Time O(N²·D), memory O(N²).

    Raises ValueError if the temperature is not positive and finite, or eps negative or not finite.
    """

    def __init__(self, temperature: float = 0.07, eps: float = 1e-12) -> None:
        super().__init__()
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature must be a positive finite number, not {temperature}.")
        if not 0 <= eps < math.inf:
            raise ValueError(f"eps must be 0 or a positive finite number, not {eps}.")
        self.temperature = temperature
        self.eps = eps

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, eps={self.eps}"

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The loss, a scalar: float64 for float64 embeddings, float32 for any other floating type.

        embeddings (N, D) floating; labels (N,) integer, on any device: equal labels are alike. Without any
        two equal labels the loss is 0 and so is its gradient; `with_statistics` tells the difference.

        Raises NonFiniteEmbeddingsError, ValueError for wrong shapes, TypeError for wrong dtypes.
        """
        return self._pass(embeddings, labels).value

    def with_statistics(self, embeddings: Tensor, labels: Tensor) -> NTXentResult:
        """The same loss and what it was taken over, for O(N·D) more work. See `forward`."""
        return _describe(self._pass(embeddings, labels), self.temperature)

    def _pass(self, embeddings: Tensor, labels: Tensor) -> _Pass:
        _check(embeddings, labels)
        labels = labels.to(embeddings.device)
        # Half precision rounds logits of 1/τ to steps of 0.01 and more: from here on float32 or float64,
        # under autocast too.
        with torch.autocast(device_type=embeddings.device.type, enabled=False):
            precise = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
            units = unit_rows(precise, self.eps)
            return _Pass(_mean_over_pairs(units @ units.T / self.temperature, labels), units, labels)


def unit_rows(embeddings: Tensor, eps: float) -> Tensor:
    """Each row of (N, D) over its Euclidean norm; rows within `eps` of 0 become 0 and take no gradient."""
    # Dividing by the largest entry first keeps the sum of squares from overflowing (float32: from 2e19 on) or
    # vanishing. The gradient need not know: the result does not depend on a row's scale.
    peaks = embeddings.detach().abs().amax(dim=1, keepdim=True)
    directed = peaks > eps
    scaled = torch.where(directed, embeddings / torch.where(directed, peaks, 1.0), 0.0)
    # A scaled row has norm 1 at least, or 0; any bound between the two only guards the zeros.
    norms: Tensor = torch.linalg.vector_norm(scaled, dim=1, keepdim=True).clamp_min(0.5)
    return scaled / norms


def _mean_over_pairs(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean of softplus(L_i − s_ip) over the ordered pairs (i, p); logits s (N, N), labels (N,)."""
    alike = labels[:, None] == labels[None, :]
    # The lowest finite number stands for −∞: it vanishes beside any logit, and where an anchor has no
    # negatives at all the softplus and its gradient come out as 0, while −∞ − (−∞) would be NaN.
    lowest = torch.finfo(logits.dtype).min
    hardest = torch.logsumexp(logits.masked_fill(alike, lowest), dim=1, keepdim=True)  # L, (N, 1)
    positives = alike & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    margins = (logits - hardest).masked_select(positives)  # (M,)
    # softplus(−x) as −logsigmoid(x), which has no threshold beyond which it is only roughly right.
    return F.logsigmoid(margins).neg().sum() / max(margins.numel(), 1)


def _describe(done: _Pass, temperature: float) -> NTXentResult:
    """Count the pairs and average their cosines.

    With S_c the sum of the unit rows of label c, the cosines of all ordered pairs of one label (each row with
    itself among them) sum to Σ_c ‖S_c‖², and those of all pairs to ‖Σ_c S_c‖²: no (N, N) matrix is needed.
    """
    units, n = done.units.detach(), len(done.labels)
    _, label_numbers, label_sizes = torch.unique(done.labels, return_inverse=True, return_counts=True)
    class_sums = units.new_zeros(len(label_sizes), units.shape[1]).index_add_(0, label_numbers, units)
    alike, own, every = class_sums.square().sum(), units.square().sum(), class_sums.sum(dim=0).square().sum()
    counts = [label_sizes.square().sum(), (label_sizes == 1).sum(), (units == 0).all(dim=1).sum()]
    # One transfer for the counts and one for the sums, since each waits for the device.
    same_label, lone, without_direction = torch.stack(counts).tolist()
    positive_sum, negative_sum = torch.stack([alike - own, every - alike]).tolist()
    pairs, negatives = same_label - n, n * n - same_label
    return NTXentResult(
        value=done.value,
        pairs=pairs,
        anchors_without_positives=lone,
        anchors_without_negatives=0 if negatives else n,
        rows_without_direction=without_direction,
        positive_cosine=positive_sum / pairs if pairs else None,
        negative_cosine=negative_sum / negatives if negatives else None,
        temperature=temperature,
    )


def _check(embeddings: Tensor, labels: Tensor) -> None:
    if embeddings.ndim != 2 or embeddings.shape[1] == 0:
        raise ValueError(f"embeddings must have shape (n, d) with d ≥ 1, not {tuple(embeddings.shape)}.")
    if not embeddings.is_floating_point():
        raise TypeError(f"embeddings must be floating point, not {embeddings.dtype}.")
    if labels.shape != embeddings.shape[:1]:
        wanted = f"({len(embeddings)},), one for each row of the embeddings"
        raise ValueError(f"labels must have shape {wanted}, not {tuple(labels.shape)}.")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"labels must be integers, not {labels.dtype}.")
    finite = torch.isfinite(embeddings.detach()).all(dim=1)
    if not finite.all():
        raise NonFiniteEmbeddingsError((~finite).nonzero().flatten().tolist())
