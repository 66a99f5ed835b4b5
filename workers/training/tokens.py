"""A dataset's texts as token ids, tokenized once and read in every epoch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from encoders.text import TextEncoder
from workers.training.datasets import Dataset

_TEXTS_AT_ONCE = 1024


@dataclass(frozen=True, eq=False)
class TokenizedDataset:
    """A dataset and the tokens of its texts, in one array: 4 bytes a token, not an object for each text."""

    dataset: Dataset
    ids: npt.NDArray[np.int32]  # (tokens of all texts,)
    starts: npt.NDArray[np.int64]  # (texts + 1,): text k is ids[starts[k]:starts[k + 1]]
    truncated: int  # texts of which some tokens are not read

    def select(self, texts: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int32]]:
        """The ids of the texts with these indices, (length,) each, as views."""
        bounds = zip(self.starts[texts].tolist(), self.starts[texts + 1].tolist(), strict=True)
        return [self.ids[start:end] for start, end in bounds]


def tokenize(dataset: Dataset, encoder: TextEncoder, *, max_seq_length: int | None = None) -> TokenizedDataset:
    """Tokenize all texts, cut to `max_seq_length` or to what the encoder reads, whichever is less."""
    limit = min(max_seq_length or encoder.max_seq_length, encoder.max_seq_length)
    pieces: list[npt.NDArray[np.int32]] = []
    truncated = 0
    for start in range(0, len(dataset.texts), _TEXTS_AT_ONCE):
        tokenized = encoder.tokenize(dataset.texts[start : start + _TEXTS_AT_ONCE])
        pieces += (_cut(text.ids, limit) for text in tokenized)
        truncated += sum(text.untruncated_length > limit for text in tokenized)
    lengths = np.fromiter(map(len, pieces), dtype=np.int64, count=len(pieces))
    return TokenizedDataset(dataset, np.concatenate(pieces), np.concatenate([[0], lengths.cumsum()]), truncated)


def _cut(ids: npt.NDArray[np.int32], limit: int) -> npt.NDArray[np.int32]:
    """The first tokens and the closing one: a text without its [SEP] is nothing the encoder has ever seen."""
    return ids if len(ids) <= limit else np.append(ids[: limit - 1], ids[-1])
