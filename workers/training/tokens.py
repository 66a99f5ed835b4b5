"""The tokens of a batch's texts, as a prepared dataset holds them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from workers.data.prepared import Prepared


def select(data: Prepared, items: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int32]]:
    """The ids of the texts with these indices, (length,) each, as views of the mapped file.

    Raises ValueError for a dataset of vectors.
    """
    if data.ids is None or data.starts is None:
        raise ValueError("A dataset of vectors has no tokens.")
    bounds = zip(data.starts[items].tolist(), data.starts[items + 1].tolist(), strict=True)
    return [data.ids[start:end] for start, end in bounds]
