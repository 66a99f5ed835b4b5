"""Pairs that have scores: how well an encoder's cosines order them.

Cosines that differ by less than float32 can tell are one, so that an encoder that gives all texts one vector orders
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch

from api_schemas.evaluation import (
    ChangedExample,
    CosineHistogram,
    EvaluationSplit,
    MetricComparison,
    MetricName,
    Task,
)
from encoders.loading import AnyEncoder
from workers.data.prepared import Prepared
from workers.data.row import Row
from workers.evaluation import bootstrap, examples, separation
from workers.evaluation.correlation import auc, mean_ranks, ordered, spearman
from workers.evaluation.embedding import embed
from workers.evaluation.evaluator import compared, histogram
from workers.evaluation.groups import groups_of
from workers.evaluation.metrics import metrics_of
from workers.evaluation.questions import MOST_ROWS, NoQuestionsError
from workers.evaluation.split import Split

Floats = npt.NDArray[np.floating]
Indices = npt.NDArray[np.int64]

#: Decimals of a cosine: a float32 dot product has no more.
_DECIMALS = 6


@dataclass(frozen=True, eq=False)
class ScoredPairs:
    """p pairs of u different first texts and v different second ones. A text may be both: it is then read as both."""

    firsts: Indices  # (u,) items of the split
    seconds: Indices  # (v,)
    pairs: Indices  # (p, 2) numbers of a first and of a second text
    scores: npt.NDArray[np.float64]  # (p,)
    groups: Indices  # (p,) pairs of one group depend on each other
    rows: Indices  # (p,) of the split


def scored_pairs_of(split: Prepared, *, seed: int) -> ScoredPairs:
    """The pairs of a split's rows, or of a sample where they are too many. Raises NoQuestionsError."""
    assert split.scores is not None  # noqa: S101 (asked of scored pairs only)
    rows = split.rows.astype(np.int64)
    if len(rows) > MOST_ROWS:
        rows = np.sort(np.random.default_rng([seed, len(rows)]).choice(rows, MOST_ROWS, replace=False))
    scores = split.scores[rows]
    if len(np.unique(scores)) == 1:
        raise NoQuestionsError("all pairs that would be compared have one score")
    firsts, seconds = split.row_starts[rows], split.row_starts[rows] + 1
    _, first, number = np.unique(split.contents[firsts], return_index=True, return_inverse=True)
    _, second, other = np.unique(split.contents[seconds], return_index=True, return_inverse=True)
    groups = groups_of(split, rows)
    return ScoredPairs(
        firsts=firsts[first],
        seconds=seconds[second],
        pairs=np.stack([number, other], axis=1),
        scores=scores,
        # Where all pairs are connected, resamples of whole groups would be all alike: then each is drawn alone.
        groups=groups if groups.any() else np.arange(len(rows)),
        rows=rows,
    )


@dataclass(frozen=True, eq=False)
class MeasuredPairs:
    """What an encoder makes of the pairs."""

    cosines: npt.NDArray[np.float64]  # (p,)

    def state_dict(self) -> dict[str, Any]:
        """The array as a tensor, which shares its memory."""
        return {"cosines": torch.from_numpy(self.cosines)}

    @classmethod
    def of_state_dict(cls, state: dict[str, Any]) -> Self:
        """Exactly what `state_dict` was taken of."""
        return cls(state["cosines"].numpy())


class ScoredEvaluator:
    """Compares encoders by the scored pairs of one split. Raises NoQuestionsError if there is nothing to compare by."""

    task: Task = "scored_pairs"

    def __init__(self, split: Split, *, seed: int, before_batch: Callable[[], None] = lambda: None) -> None:
        """before_batch: called before each forward; may raise, to stop."""
        self.split = split
        self.seed = seed
        self.metrics = metrics_of(split.evaluation)
        self._scored = scored_pairs_of(split.evaluation, seed=seed)
        self._before_batch = before_batch
        scores = self._scored.scores
        #: What no rank depends on but for its order.
        self._order = ordered(scores)
        self._once = np.ones(len(scores), dtype=np.int64)
        self._middle = float(scores.min() / 2 + scores.max() / 2)
        # The highest in any case: halfway between two scores that nearly touch may be the upper one itself.
        self._high = (scores > self._middle) | (scores == scores.max())

    def measure(self, encoder: AnyEncoder) -> MeasuredPairs:
        """Embed and compare. The encoder's mode is left as it is."""
        firsts, seconds = self._embed(encoder, self._scored.firsts), self._embed(encoder, self._scored.seconds)
        cosines = separation.cosines(self._scored.pairs, firsts, seconds)
        return MeasuredPairs(cosines.astype(np.float64).round(_DECIMALS))

    def measured_of(self, state: dict[str, Any]) -> MeasuredPairs:
        """What `MeasuredPairs.state_dict` gave."""
        return MeasuredPairs.of_state_dict(state)

    def score(self, measured: MeasuredPairs, metric: MetricName) -> float:
        """One number. Raises KeyError for a metric that isn't of this task."""
        return self._value(metric, ordered(measured.cosines), self._once)

    def compare(self, base: MeasuredPairs, tuned: MeasuredPairs) -> list[MetricComparison]:
        """Each metric of both, with the interval of the difference; the main one first."""
        before, after = ordered(base.cosines), ordered(tuned.cosines)

        def comparison(name: MetricName) -> MetricComparison:
            def difference(times: Indices) -> float:
                return self._value(name, after, times) - self._value(name, before, times)

            interval = bootstrap.of_weighted(difference, self._scored.groups, seed=self.seed)
            return compared(name, self.score(base, name), self.score(tuned, name), interval)

        return [comparison(name) for name in self.metrics]

    def histogram(self, base: MeasuredPairs, tuned: MeasuredPairs) -> CosineHistogram:
        """Cosines of pairs with high and with low scores under both encoders."""
        right, wrong = ((base.cosines[which], tuned.cosines[which]) for which in (self._high, ~self._high))
        return histogram(right, wrong).model_copy(update={"divided_at": self._middle})

    def most_changed(
        self, base: MeasuredPairs, tuned: MeasuredPairs, count: int
    ) -> tuple[Sequence[int], Sequence[int]]:
        """The pairs that came closer to the place that their score gives them, and those that went away from it."""
        wanted = self._places(self._scored.scores)
        off = [np.abs(self._places(measured.cosines) - wanted) for measured in (base, tuned)]
        return examples.most_changed(off[0] - off[1], count)

    def row_of(self, example: int) -> int:
        return int(self._scored.rows[example])

    def example(self, example: int, row: Row, base: MeasuredPairs, tuned: MeasuredPairs) -> ChangedExample:
        """How a pair moved, which stands in this row."""
        before, after, wanted = (
            round(float(self._places(values)[example])) for values in (base.cosines, tuned.cosines, self._scored.scores)
        )
        one, other = (examples.told(each, self.row_of(example)) for each in row.inputs)
        return ChangedExample(
            query=one, answer=other, place_before=before, place_after=after, score=row.score, place_by_score=wanted
        )

    def told_split(self, file_id: str) -> EvaluationSplit:
        """What was asked about; `file_id` is of the file that the split is of."""
        return EvaluationSplit(
            id=self.split.id,
            source=self.split.source,
            file=file_id,
            rows=self.split.evaluation.row_count,
            queries=len(self._scored.rows),
            documents=0,
            distractors=0,
            groups=len(np.unique(self._scored.groups)),
        )

    def _value(self, metric: MetricName, numbers: npt.NDArray[np.integer[Any]], times: Indices) -> float:
        if metric not in self.metrics:
            raise KeyError(metric)
        if metric == "auc":
            return auc(numbers, self._high, times)
        return spearman(numbers, self._order, times)

    def _places(self, values: Floats) -> Floats:
        """From 1 for the highest, (p,); equal values share the mean of their places."""
        return mean_ranks(ordered(-values), self._once)

    def _embed(self, encoder: AnyEncoder, items: Indices) -> npt.NDArray[np.float32]:
        return embed(encoder, self.split.evaluation, items, before_batch=self._before_batch)
