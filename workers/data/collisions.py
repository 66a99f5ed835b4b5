"""How many rows of a batch share a text, so that it would be a negative of itself."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]

_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def expected_in_batch(sharing: float, rows: int, batch_size: int) -> float:
    """The expected number of pairs of rows in a batch that share a content: S · B (B − 1) / (R (R − 1)).

    S, `sharing`, is the number of unordered pairs of the R rows that share one. A batch of B rows drawn without
    replacement holds a given pair of rows with probability C(R − 2, B − 2) / C(R, B) = B (B − 1) / (R (R − 1)), and
    expectations add up, however the pairs depend on one another.

    S itself is a sum over contents: of the n_c rows that hold content c, C(n_c, 2) pairs share it. A pair of rows
    that shares k contents is counted k times in Σ_c C(n_c, 2); rows that hold the same k contents are taken out again
    k − 1 times, which makes S exact for rows of one or two inputs, and an upper bound for longer ones.
    """
    batch_size = min(batch_size, rows)
    return sharing * batch_size * (batch_size - 1) / (rows * (rows - 1)) if rows > 1 else 0.0


def pairs_of(counts: Integers) -> float:
    """Σ C(n, 2). A float: the counts of 4 billion rows that are all alike have no room in 63 bits."""
    exact = counts.astype(np.float64)
    return float((exact * (exact - 1) / 2).sum())


def row_keys(ids: Integers, starts: Integers, *, ordered: bool) -> Integers:
    """(R,) an id for each row's contents, 63 bits: equal for rows that hold the same, in the same order if `ordered`.

    ids: (I,) contents of all rows; starts: (R,) where each row's begin.
    """
    mixed = ids.astype(np.uint64)
    if ordered:
        lengths = np.diff(np.append(starts, len(ids)))
        places = np.arange(len(ids)) - np.repeat(starts, lengths)
        mixed = _mixed(mixed) + places.astype(np.uint64) * _GOLDEN
    return (_mixed(np.add.reduceat(_mixed(mixed), starts)) >> np.uint64(1)).astype(np.int64)


def _mixed(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finalizer of SplitMix64 (Steele, Lea and Flood 2014), in which each bit of the input tells on each bit."""
    values = values + _GOLDEN
    values = (values ^ (values >> np.uint64(30))) * _MIX[0]
    values = (values ^ (values >> np.uint64(27))) * _MIX[1]
    return values ^ (values >> np.uint64(31))
