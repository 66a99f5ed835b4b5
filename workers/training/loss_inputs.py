"""What a contrastive loss takes: checked, on one device, in full precision, and rows brought to length 1."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

_LISTED_ROWS = 8


class NonFiniteEmbeddingsError(ValueError):
    """Rows of the embeddings hold NaN or infinity. `rows` has their numbers, from 0."""

    def __init__(self, rows: list[int], name: str = "embeddings") -> None:
        listed = ", ".join(map(str, rows[:_LISTED_ROWS]))
        more = f" and {len(rows) - _LISTED_ROWS} more" if len(rows) > _LISTED_ROWS else ""
        super().__init__(f"The {name} hold NaN or infinity in row {listed}{more}.")
        self.rows = rows


class LossInputs(NamedTuple):
    """What a caller may pass, as `ContrastiveLoss.forward` says; after `checked` on one device, of one dtype."""

    embeddings: Tensor  # (R, D)
    labels: Tensor  # (R,)
    ref_emb: Tensor | None = None  # (C, D)
    ref_labels: Tensor | None = None  # (C,)
    content_ids: Tensor | None = None  # (R,)
    ref_content_ids: Tensor | None = None  # (C,)
    anchor_offset: int | None = None
    anchor_weights: Tensor | None = None  # (R,)


def checked(inputs: LossInputs) -> LossInputs:
    """The inputs in full precision and on the embeddings' device. Raises ValueError and TypeError."""
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
    return LossInputs(
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
    if not holds_integers(values):
        raise TypeError(f"{name} must be integers, not {values.dtype}.")
    return _one_a_row(name, values, rows).to(torch.int64)


def holds_integers(values: Tensor) -> bool:
    return not (values.is_floating_point() or values.is_complex() or values.dtype == torch.bool)


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


def full_precision(embeddings: Tensor) -> torch.autocast:
    """Half precision rounds logits of 1/τ to steps of 0.01 and more: autocast must not reach inside."""
    return torch.autocast(device_type=embeddings.device.type, enabled=False)


def unit_rows(embeddings: Tensor, eps: float, name: str = "embeddings") -> Tensor:
    """Each row of (R, D) over its Euclidean norm; rows within `eps` of 0 become 0 and take no gradient.

    Raises NonFiniteEmbeddingsError.
    """
    # Dividing by the largest entry first keeps the sum of squares from overflowing (float32: from 2e19 on) or
    # vanishing. The gradient need not know: the result does not depend on a row's scale.
    peaks = largest_entries(embeddings, name)
    directed = peaks > max(eps, torch.finfo(peaks.dtype).tiny)
    # Not times 1 / peak: of the largest numbers that is subnormal, and 0 where subnormal numbers are flushed.
    scaled = embeddings / torch.where(directed, peaks, math.inf)
    # A scaled row has norm 1 at least, or 0; any bound between the two only guards the zeros.
    norms: Tensor = torch.linalg.vector_norm(scaled, dim=1, keepdim=True).clamp_min(0.5)
    return scaled / norms


def largest_entries(embeddings: Tensor, name: str = "embeddings") -> Tensor:
    """The largest entry of each row by magnitude, (R, 1), without a graph. Raises NonFiniteEmbeddingsError."""
    peaks = embeddings.detach().abs().amax(dim=1, keepdim=True)  # NaN and infinity come through
    if not peaks.isfinite().all():
        raise NonFiniteEmbeddingsError((~peaks.flatten().isfinite()).nonzero().flatten().tolist(), name)
    return peaks
