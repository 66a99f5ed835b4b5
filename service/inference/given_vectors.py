"""Vectors from a request, as an adapter takes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from api_schemas.errors import LikenessError


def checked(vectors: Sequence[Sequence[float]], dimension: int, names: Sequence[str]) -> npt.NDArray[np.float32]:
    """(n, dimension) float32 of length 1, for vectors that have a direction; `names` say where each was sent.

    Raises LikenessError `dimension_mismatch`, `not_finite` or `zero_vector`, for the first that is wrong.
    """
    for vector, name in zip(vectors, names, strict=True):
        if len(vector) != dimension:
            raise LikenessError(
                "dimension_mismatch",
                f"`{name}` has {len(vector)} numbers; this model reads vectors of {dimension}.",
                param=name,
            )
    rows = np.array(vectors, dtype=np.float64)
    _refuse(np.logical_not(np.isfinite(rows)).any(axis=1), names, "not_finite", "holds NaN or infinity. Leave it out.")
    largest = np.abs(rows).max(axis=1, keepdims=True)
    _refuse(largest[:, 0] == 0, names, "zero_vector", "is all zeros, which point nowhere. Leave it out.")
    # By the largest number first, and here: float32 would make 0 of 1e-300, and infinity of 1e300.
    rows = rows / largest
    unit: npt.NDArray[np.float32] = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return unit


def _refuse(wrong: Any, names: Sequence[str], code: str, what: str) -> None:
    if wrong.any():
        name = names[int(wrong.argmax())]
        raise LikenessError(code, f"`{name}` {what}", param=name)
