"""Cells of units of like length: what asks has about one length in a cell, and so has what answers.

The plane of both lengths is cut in two where that saves most padding, and each part again, until a cell makes a
batch. Cells follow one another so that neighbours have lengths in common, since a unit that has to wait moves all that
come behind it up by one. Letters: n units, of which `size` make a batch.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]
Lengths = npt.NDArray[np.integer[Any]]

#: A part is no smaller than this share of what is cut, lest few long texts be cut off one batch at a time: it bounds
#: how often a unit is sorted.
_SMALLEST_SHARE = 16


class _Part(NamedTuple):
    members: Integers
    #: Whether to go through it from long to short, by what asks and by what answers.
    backwards: tuple[bool, bool]


class _Cut(NamedTuple):
    tokens: int  # of both parts, padding included
    axis: int
    short: Integers
    long: Integers


def in_order(asking: Integers, answering: Integers, size: int) -> Integers:
    """The numbers of units, whose lengths in tokens are (n,) each, cell by cell; (n,)."""
    lengths = (_narrow(asking), _narrow(answering))
    cells: list[Integers] = [np.zeros(0, dtype=np.int64)]
    parts = [_Part(np.arange(len(asking)), (False, False))]
    while parts:
        members, backwards = parts.pop()
        cuts = [_cut(members, lengths, axis, size) for axis in (0, 1) if len(members) > size and lengths[axis].any()]
        if not cuts:
            cells.append(members)
            continue
        best = min(cuts, key=lambda cut: cut.tokens)
        first, second = (best.long, best.short) if backwards[best.axis] else (best.short, best.long)
        # Where the first part ends by the other length, the second one begins.
        turned = (backwards[0] ^ (best.axis == 1), backwards[1] ^ (best.axis == 0))
        parts += [_Part(second, turned), _Part(first, backwards)]
    return np.concatenate(cells)


def _narrow(lengths: Integers) -> Lengths:
    """In 2 bytes each where that is enough: numpy sorts those by their digits, in a fraction of the time."""
    return lengths.astype(np.uint16) if lengths.max(initial=0) < 2**16 else lengths


def _cut(members: Integers, lengths: tuple[Lengths, Lengths], axis: int, size: int) -> _Cut:
    """The best cut by one of the lengths, between whole batches."""
    ordered = members[np.argsort(lengths[axis][members], kind="stable")]
    n = len(ordered)
    batches = -(-n // size)
    fewest = -(-batches // _SMALLEST_SHARE)
    # Of each batch the longest; of what it is sorted by, that is the last one.
    starts = np.arange(0, n, size)
    longest = np.stack([np.maximum.reduceat(each[ordered], starts).astype(np.int64) for each in lengths])
    short = np.maximum.accumulate(longest, axis=1).sum(axis=0)
    long = np.maximum.accumulate(longest[:, ::-1], axis=1)[:, ::-1].sum(axis=0)
    counts = starts[fewest : batches - fewest + 1]  # of the part of short ones
    tokens = counts * short[fewest - 1 : batches - fewest] + (n - counts) * long[fewest : batches - fewest + 1]
    best = int(tokens.argmin())
    return _Cut(int(tokens[best]), axis, ordered[: counts[best]], ordered[counts[best] :])
