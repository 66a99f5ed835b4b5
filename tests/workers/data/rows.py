"""Rows and a tokenizer for tests: small, fast, and without a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from workers.data.preparation import prepare
from workers.data.prepared import Prepared
from workers.data.row import Row

CLS, SEP = 1, 2


class Tokens(NamedTuple):
    ids: np.ndarray
    untruncated_length: int


def words(texts: Sequence[str]) -> list[Tokens]:
    """A token for each word, its number in the order of bytes; framed as BERT does."""
    return [_tokens(text) for text in texts]


def _tokens(text: str) -> Tokens:
    ids = [CLS, *(3 + int.from_bytes(word.encode()[:3], "big") for word in text.split()), SEP]
    return Tokens(np.array(ids, dtype=np.int32), len(ids))


def prepared(folder: Path, rows: Sequence[Row] | Iterator[Row], *, limit: int = 512) -> Prepared:
    return prepare(iter(rows), folder, tokenizer=words, limit=limit)


def pair(anchor: object, positive: object) -> Row:
    return Row("pairs", (str(anchor), str(positive)))


def scored(text: object, other: object, score: float) -> Row:
    return Row("scored_pairs", (str(text), str(other)), score=score)


def triplet(*inputs: object) -> Row:
    return Row("triplets", tuple(map(str, inputs)))


def views(*inputs: object) -> Row:
    return Row("views", tuple(map(str, inputs)))


def labelled(text: object, label: object) -> Row:
    return Row("labels", (str(text),), str(label))


def plain(text: object) -> Row:
    return Row("texts", (str(text),))
