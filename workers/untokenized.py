"""What stands where a tokenizer will, as long as there is none: it counts characters.

So files are read, and their rows told apart and split, before it is known what their tokens are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from workers.data.prepared import Prepared


class Length(NamedTuple):
    """A text whose only id is its length in characters."""

    ids: npt.NDArray[np.int32]
    untruncated_length: int = 1


class Untokenized:
    """Gives each text a `Length`."""

    fingerprint = "untokenized"
    max_seq_length = 1

    def __call__(self, texts: Sequence[str]) -> Sequence[Length]:
        return [Length(np.array([len(text)], dtype=np.int32)) for text in texts]


def characters_of(data: Prepared) -> int:
    """How many the texts have of all rows that are used, in a dataset that is prepared with `Untokenized`."""
    assert data.ids is not None  # noqa: S101 (it holds texts)
    of_rows = np.add.reduceat(data.ids, data.row_starts[:-1], dtype=np.int64)
    return int(of_rows[data.rows].sum())
