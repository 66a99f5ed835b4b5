"""Hard negatives from the file itself: for each anchor, what the encoder as it is now takes for its answer, wrongly.

Before an epoch the answers of the file are embedded, or MOST_CANDIDATES of its rows' drawn at random, and each anchor
is given the nearest of them that are not its own. What lies nearer to an anchor than `margin` times its own answer is
left out: so near, it is likely an answer that nobody has marked. Left out as well is any text that some row gives as
an answer to the same anchor, and the anchor itself.

With a an anchor and p its positive, a candidate c may be mined where cos(a, c) ≤ cos(a, p) − (1 − margin)·|cos(a, p)|,
which for positive cosines is margin·cos(a, p).

Sources: Xiong et al. 2021, "Approximate Nearest Neighbor Negative Contrastive Learning for Dense Text Retrieval"
(mining under the encoder that is being trained); Moreira et al. 2024, "NV-Retriever: Improving text embedding models
with effective hard-negative mining" (the margin relative to the positive, and its 0.95).

Letters of shapes: R rows, c candidates, b anchors of a block, k negatives for each, d dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from api_schemas.files import DataFormat
from workers.data.prepared import Prepared
from workers.training.batches import Batch
from workers.training.tokens import select
from workers.training.views import Tokens

Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]

#: Formats whose rows have an anchor and an answer.
MINED_FORMATS: frozenset[DataFormat] = frozenset({"pairs", "triplets"})
#: Of 384 dimensions, 100 MB.
MOST_CANDIDATES = 65_536
#: Its scores with all candidates are 67 MB.
_ANCHORS_OF_A_BLOCK = 256
_EXAMPLES = 3
#: Characters of a text in an example.
_SHOWN = 100
_NONE = -1


class MiningStopped(Exception):  # noqa: N818 (a request that was met, not an error)
    """Mining was asked to stop; nothing was changed."""


class Encoder(Protocol):
    """What is asked of the encoder: unit vectors (n, d) of token ids, without dropout."""

    def embed(self, tokens: Sequence[Tokens], /) -> Floats: ...


@dataclass(frozen=True, kw_only=True)
class MiningConfig:
    """See `api_schemas.methods.HardNegatives`."""

    per_anchor: int = 1  # k
    margin: float = 0.95
    every_epochs: int = 1


class Example(NamedTuple):
    """A row and what was mined for it, with the anchor's cosines."""

    row: int
    negative: int  # item
    positive_cosine: float
    negative_cosine: float


@dataclass(frozen=True, eq=False)
class Mined:
    """The negatives of each row, (R, k) items, −1 where there are fewer; and what to tell about them."""

    items: Indices
    candidates: int  # different texts that were looked at
    left_out: int  # pairs of an anchor and a candidate that were too near each other
    positive_cosine: float  # means
    negative_cosine: float
    examples: list[Example]

    @property
    def anchors(self) -> int:
        """Rows with at least one negative."""
        return int((self.items[:, 0] != _NONE).sum())


class _Candidates(NamedTuple):
    """What may be mined: items and their contents, both (c,) and by content, and unit vectors (c, d)."""

    items: Indices
    contents: Indices
    vectors: Floats


def mine(
    encoder: Encoder,
    data: Prepared,
    config: MiningConfig,
    *,
    seed: int,
    epoch: int,
    progress: Callable[[int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Mined:
    """Mine for every row of a file that is used, among the answers of these. Depends on the arguments only.

    `progress` hears how many rows are done.

    Memory: the candidates' vectors, 24 bytes a row, and a block of scores. Raises MiningStopped.
    """
    rng = np.random.default_rng([seed, epoch, len(data)])
    candidates = _candidates(encoder, data, rng, should_stop)
    answers = _Answers(data, candidates.contents)
    items = np.full((len(data), config.per_anchor), _NONE, dtype=np.int64)
    sums, left_out = np.zeros(3), 0  # of positive cosines, of negative ones, and how many these are
    hardest: list[Example] = []
    for start in range(0, data.row_count, _ANCHORS_OF_A_BLOCK):
        _look(should_stop)
        rows = data.rows[start : start + _ANCHORS_OF_A_BLOCK].astype(np.int64)
        block = _nearest(encoder, data, rows, candidates, answers, config)
        items[rows] = block.items
        found = block.items != _NONE
        sums += block.positives[found.any(axis=1)].sum(), block.cosines[found].sum(), found.sum()
        left_out += block.left_out
        hardest = _hardest(hardest, block, rows)
        if progress is not None:
            progress(start + len(rows))
    anchors = max(1, int((items[:, 0] != _NONE).sum()))
    return Mined(
        items=items,
        candidates=len(candidates.items),
        left_out=left_out,
        positive_cosine=float(sums[0]) / anchors,
        negative_cosine=float(sums[1] / max(1, sums[2])),
        examples=hardest,
    )


def extended(batch: Batch, mined: Indices, data: Prepared, *, source_labels: int = 0) -> Batch:
    """The batch with the negatives of its rows, in order, behind its own items. mined: `Mined.items`.

    A text that is in the batch already is not added: it is a negative there, or somebody's answer.
    source_labels: what the mixture has added to labels of this dataset.
    """
    rows = np.searchsorted(data.row_starts, batch.items[batch.asks], side="right") - 1
    items = mined[rows].ravel()
    items = items[items != _NONE]
    contents = data.contents[items]
    first = np.zeros(len(items), dtype=np.bool_)
    first[np.unique(contents, return_index=True)[1]] = True
    kept = first & ~np.isin(contents, batch.contents)
    items, contents = items[kept], contents[kept]
    return replace(
        batch,
        items=np.concatenate([batch.items, items]),
        contents=np.concatenate([batch.contents, contents]),
        # Below 0, as of negatives that come with the data: a positive of nothing.
        labels=np.concatenate([batch.labels, -1 - items - source_labels]),
        asks=np.concatenate([batch.asks, np.zeros(len(items), dtype=np.bool_)]),
        mined=len(items),
    )


def _candidates(
    encoder: Encoder, data: Prepared, rng: np.random.Generator, should_stop: Callable[[], bool] | None
) -> _Candidates:
    """The answers of all rows, or of MOST_CANDIDATES of them, each text once."""
    rows = data.rows
    if len(rows) > MOST_CANDIDATES:
        rows = np.sort(rng.choice(rows, MOST_CANDIDATES, replace=False))
    items = data.row_starts[rows] + 1
    contents, first = np.unique(data.contents[items], return_index=True)
    items = items[first]
    blocks = []
    for start in range(0, len(items), _ANCHORS_OF_A_BLOCK):
        _look(should_stop)
        blocks.append(encoder.embed(select(data, items[start : start + _ANCHORS_OF_A_BLOCK])))
    return _Candidates(items, contents, np.concatenate(blocks))


class _Answers:
    """Which candidates are answers to an anchor's text, whatever row says so."""

    def __init__(self, data: Prepared, contents: Indices) -> None:
        """contents: the candidates', sorted."""
        anchors = data.contents[data.row_starts[data.rows]]
        answers = data.contents[data.row_starts[data.rows] + 1]
        places = np.searchsorted(contents, answers).clip(max=len(contents) - 1)
        known = contents[places] == answers
        order = np.argsort(anchors[known], kind="stable")
        self._anchors = anchors[known][order]
        self._places = places[known][order]

    def of(self, anchors: Indices) -> tuple[Indices, Indices]:
        """(which anchor, which candidate), for anchors' contents (b,)."""
        starts = np.searchsorted(self._anchors, anchors, side="left")
        counts = np.searchsorted(self._anchors, anchors, side="right") - starts
        which = np.repeat(np.arange(len(anchors)), counts)
        within = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
        return which, self._places[np.repeat(starts, counts) + within]


class _Block(NamedTuple):
    """items and cosines are (b, k), −1 and NaN where nothing was found; positives (b,) the cosines with the answers."""

    items: Indices
    cosines: Floats
    positives: Floats
    left_out: int


def _nearest(
    encoder: Encoder, data: Prepared, rows: Indices, candidates: _Candidates, answers: _Answers, config: MiningConfig
) -> _Block:
    anchors = data.row_starts[rows]
    vectors = encoder.embed(select(data, anchors))
    positives = np.einsum("bd,bd->b", vectors, encoder.embed(select(data, anchors + 1)))
    scores = vectors @ candidates.vectors.T
    scores[answers.of(data.contents[anchors])] = -np.inf
    own = np.searchsorted(candidates.contents, data.contents[anchors]).clip(max=len(candidates.contents) - 1)
    same = candidates.contents[own] == data.contents[anchors]
    scores[np.flatnonzero(same), own[same]] = -np.inf
    too_near = scores > (positives - (1 - config.margin) * np.abs(positives))[:, None]
    scores[too_near] = -np.inf
    k = min(config.per_anchor, scores.shape[1])
    nearest = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    nearest = np.take_along_axis(nearest, np.argsort(-np.take_along_axis(scores, nearest, 1), 1, kind="stable"), 1)
    cosines = np.full((len(rows), config.per_anchor), np.nan, dtype=np.float32)
    cosines[:, :k] = np.take_along_axis(scores, nearest, axis=1)
    items = np.full(cosines.shape, _NONE, dtype=np.int64)
    items[:, :k] = np.where(np.isfinite(cosines[:, :k]), candidates.items[nearest], _NONE)
    cosines[items == _NONE] = np.nan
    return _Block(items, cosines, positives, int(too_near.sum()))


def _hardest(so_far: list[Example], block: _Block, rows: Indices) -> list[Example]:
    """The rows whose negative is nearest in comparison with their own answer."""
    gaps = block.positives - block.cosines[:, 0]
    order = np.argsort(gaps, kind="stable")[:_EXAMPLES]  # NaN comes last
    new = [
        Example(int(rows[at]), int(block.items[at, 0]), float(block.positives[at]), float(block.cosines[at, 0]))
        for at in order
        if block.items[at, 0] != _NONE
    ]
    return sorted([*so_far, *new], key=lambda one: (one.positive_cosine - one.negative_cosine, one.row))[:_EXAMPLES]


def _look(should_stop: Callable[[], bool] | None) -> None:
    if should_stop is not None and should_stop():
        raise MiningStopped


def described(mined: Mined, data: Prepared, decode: Callable[[Tokens], str]) -> str:
    """What was chosen and why, in a sentence, and some examples, a line each. decode: token ids to a text."""
    lines = [
        f"Mined hard negatives for {mined.anchors:,} of {data.row_count:,} rows among {mined.candidates:,} texts: mean "
        f"cosine {mined.negative_cosine:.3f} with the anchor, and {mined.positive_cosine:.3f} of its own answer. "
        f"{mined.left_out:,} nearer ones were left out as likely answers"
    ]
    for one in mined.examples:
        first = int(data.row_starts[one.row])
        anchor, positive, negative = (
            decode(select(data, np.array([item]))[0])[:_SHOWN] for item in (first, first + 1, one.negative)
        )
        lines.append(
            f"row {one.row + 1}: {anchor!r} is answered by {positive!r} ({one.positive_cosine:.3f}); "
            f"mined was {negative!r} ({one.negative_cosine:.3f})"
        )
    return "\n".join(lines)
