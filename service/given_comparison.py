"""Vectors that a request brings to be compared as they are, without a model."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from api_schemas.embeddings import Given
from api_schemas.errors import LikenessError
from service.inference.given_vectors import checked


def comparable(named: dict[str, Given], metric: Literal["cosine", "dot"]) -> npt.NDArray[Any]:
    """The vectors (n, d), by their names in the request: float32 of length 1 for cosine, float64 as sent for dot.

    Raises LikenessError `missing_parameter` for texts, which only a model can read, `dimension_mismatch` and, for
    cosine, `zero_vector`.
    """
    names = list(named)
    vectors = [_vector(name, given) for name, given in named.items()]
    _check_lengths(vectors, names)
    if metric == "cosine":
        return checked(vectors, len(vectors[0]), names)
    return np.array(vectors, dtype=np.float64)


def as_float32(scores: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Scores as they are answered. Raises LikenessError `out_of_range` for one that is too large."""
    if np.any(np.logical_not(np.abs(scores) <= np.finfo(np.float32).max)):
        message = "A dot product is too large for a 32-bit float. Scale the vectors, or ask for the metric 'cosine'."
        raise LikenessError("out_of_range", message, param="metric")
    rounded: npt.NDArray[np.float32] = scores.astype(np.float32)
    return rounded


def _vector(name: str, given: Given) -> list[float]:
    if not isinstance(given, str):
        return given
    message = f"`model` is required, as `{name}` is a text: name the model to read it, or send vectors only."
    raise LikenessError("missing_parameter", message, param="model")


def _check_lengths(vectors: Sequence[Sequence[float]], names: Sequence[str]) -> None:
    for vector, name in zip(vectors, names, strict=True):
        if len(vector) != len(vectors[0]):
            message = f"`{name}` has {len(vector)} numbers, and `{names[0]}` {len(vectors[0])}. Send as many in each."
            raise LikenessError("dimension_mismatch", message, param=name)
