"""Vectors of a dataset's items."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from encoders.loading import AnyEncoder
from encoders.text import TextEncoder
from workers.data.prepared import Prepared
from workers.training import tokens
from workers.training.losses import NonFiniteEmbeddingsError
from workers.training.units import item_lengths

#: No forward is given more tokens, unless one text alone is longer, nor more vectors.
_TOKENS_AT_ONCE = 8192


def embed(
    encoder: AnyEncoder, data: Prepared, items: npt.NDArray[np.int64], *, before_batch: Callable[[], None]
) -> npt.NDArray[np.float32]:
    """Items to (n, d) float32 of length 1, in the order given; without dropout, training or not.

    `before_batch` may raise, to stop. Raises NonFiniteEmbeddingsError.
    """
    vectors = np.zeros((len(items), encoder.dimension), dtype=np.float32)
    order = np.argsort(item_lengths(data, items), kind="stable")
    batches = np.cumsum(item_lengths(data, items)[order]) // _TOKENS_AT_ONCE
    for batch in np.split(order, np.flatnonzero(np.diff(batches)) + 1):
        before_batch()
        vectors[batch] = _embedded(encoder, data, items[batch])
    if not (finite := np.isfinite(vectors).all(axis=1)).all():
        raise NonFiniteEmbeddingsError(np.flatnonzero(~finite).tolist(), "embeddings")
    return vectors


def _embedded(encoder: AnyEncoder, data: Prepared, items: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    if isinstance(encoder, TextEncoder):
        return encoder.embed(tokens.select(data, items))
    assert data.vectors is not None  # noqa: S101 (an adapter is trained on vectors only)
    return encoder.embed(data.vectors[items])
