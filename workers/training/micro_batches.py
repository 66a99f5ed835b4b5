"""A batch in parts that pass through the encoder one after the other: how large they are, and which texts they hold.

The contrastive batch stays whole (`workers.training.gradient_cache`); parts are about memory only. What a pass
holds grows with its tokens, so texts are sorted by length and cut into parts of about the same number of tokens.
Sorted, a part also has few different lengths, each of which costs the packed encoder a call of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from encoders.vectors import Rows
from workers.data.prepared import Prepared

#: `auto` lets a batch of so many tokens through in one pass. MiniLM holds 220 KB a token of texts of 16, and 410 KB of
#: texts of 256, for the backward pass, so 1.8 to 3.4 GB: a laptop has that. Encoders of 12 layers of 768 take four
#: times as much; where that isn't there, micro-batches are halved.
TOKENS_AT_ONCE = 8192


def automatic_size(batch_size: int, tokens_per_row: float) -> int:
    """Rows of a micro-batch: the whole batch if it fits into TOKENS_AT_ONCE, else the largest power of two that does.

    tokens_per_row: on average; batches of a long tail of lengths go a little over.
    """
    fitting = int(TOKENS_AT_ONCE / tokens_per_row)
    if batch_size <= fitting:
        return batch_size
    return 1 << max(0, fitting.bit_length() - 1)


def tokens_per_row(data: Prepared) -> float:
    """How many tokens pass through the encoder for a row, on average."""
    if data.starts is None:
        raise ValueError("A dataset of vectors has no tokens.")
    views = 2 if data.format == "texts" else 1
    return views * int(data.starts[-1]) / len(data)


@dataclass(frozen=True)
class Parts:
    """Texts cut into parts. Its slices hold the texts of all parts in them: what `GradientCache` cuts."""

    parts: list[list[npt.NDArray[Any]]]
    back: npt.NDArray[np.int64]  # (N,) where each text of the batch lies among those of all parts

    @classmethod
    def of(cls, texts: Rows, count: int) -> Self:
        """At most `count` parts of about the same number of tokens; vectors count as texts of one length."""
        lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
        order = np.argsort(lengths, kind="stable")
        ends = np.cumsum(lengths[order])
        # By the middle of each text: a part has at most one text more than its share of the tokens.
        numbers = (2 * ends - lengths[order]) * count // (2 * ends[-1])
        borders = np.flatnonzero(np.diff(numbers)) + 1
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        return cls([[texts[index] for index in part] for part in np.split(order, borders)], back)

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, which: slice, /) -> list[npt.NDArray[Any]]:
        return [text for part in self.parts[which] for text in part]
