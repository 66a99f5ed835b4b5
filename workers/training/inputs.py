"""What an encoder is given of a batch: the tokens of its texts, or its vectors, and views of either.

Texts have views where a file holds nothing but texts. Vectors have them in every file: what two of one label, or of a
pair, differ by is data, and a view adds what they should not be told apart by.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from encoders.loading import AnyEncoder
from encoders.text import TextEncoder
from workers.data.prepared import Prepared
from workers.training import tokens, views
from workers.training.batches import Batch
from workers.training.config import TrainingConfig

Vectors = npt.NDArray[np.float32]  # (N, D)
Inputs = list[views.Tokens] | Vectors


class Drawn(NamedTuple):
    """A batch, this process' share of it, and what of that is encoded."""

    batch: Batch
    share: Batch
    inputs: Inputs


_OF_VECTORS: dict[str, views.View[views.Vector]] = {
    "dropout": views.unchanged,
    "noise": views.GaussianNoise(),
    "masking": views.Masking(),
}


def select(data: Prepared, items: npt.NDArray[np.int64]) -> Inputs:
    """The texts' tokens, or the vectors, with these indices, as the file has them."""
    return tokens.select(data, items) if data.vectors is None else data.vectors[items]


def tokens_in(inputs: Inputs) -> int:
    """How many tokens an encoder reads of them. Vectors have none."""
    return 0 if isinstance(inputs, np.ndarray) else sum(map(len, inputs))


class BatchInputs:
    """Reads what training encodes of a batch."""

    def __init__(self, config: TrainingConfig, encoder: AnyEncoder) -> None:
        self._seed = config.seed
        self._view = config.view
        self._of_texts = _view_of_texts(config, encoder) if isinstance(encoder, TextEncoder) else views.unchanged

    def __call__(self, data: Prepared, batch: Batch) -> Inputs:
        if data.vectors is not None:
            return self._vectors(data.vectors[batch.items], batch)
        ids = tokens.select(data, batch.items)
        if data.format != "texts":
            return ids
        return views.apply(self._of_texts, ids, batch.items, seed=self._seed, epoch=batch.epoch)

    def _vectors(self, vectors: Vectors, batch: Batch) -> Vectors:
        view = _OF_VECTORS[self._view]
        if view is views.unchanged or not len(vectors):
            return vectors
        return np.stack(views.apply(view, list(vectors), batch.items, seed=self._seed, epoch=batch.epoch))


def _view_of_texts(config: TrainingConfig, encoder: TextEncoder) -> views.View[views.Tokens]:
    if config.view == "dropout":
        return views.unchanged
    kind = views.WordDeletion if config.view == "deletion" else views.SpanCrop
    return kind(continues=encoder.tokenizer.continues())
