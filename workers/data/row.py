"""One row of a dataset, whatever file it came from, or the reason why there is none."""

from __future__ import annotations

from typing import NamedTuple

from api_schemas.files import DataFormat

Input = str | tuple[float, ...]


class Row(NamedTuple):
    """Inputs that belong together.

    format         inputs
    pairs          anchor, positive
    scored_pairs   text, another; `score` says how alike they are
    triplets       anchor, positive, hard negatives: one or more
    labels         text; `label` says what it is
    views          texts of one item: two or more
    texts          text; views of it are made in training
    vectors        vector; `label` says what it is
    vector_pairs   vector, positive
    """

    format: DataFormat
    inputs: tuple[Input, ...]
    label: str | None = None  # integers as their digits
    score: float | None = None  # the higher, the more alike


class RefusedError(Exception):
    """Something cannot be used. `message` says why and what to do, without a row's number."""

    def __init__(self, code: str, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.field = field


class RowRefusedError(RefusedError):
    """A record is no row; the records after it may be."""


class FileRefusedError(RefusedError):
    """A file cannot be read, or not beyond some place."""
