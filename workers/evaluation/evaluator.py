"""An encoder's answers to the questions of a split, and two encoders' side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from api_schemas.evaluation import (
    TITLES,
    ChangedExample,
    CosineHistogram,
    EvaluationSplit,
    MetricComparison,
    MetricName,
    Task,
)
from encoders.loading import AnyEncoder
from workers.data.row import Row
from workers.evaluation import bootstrap, examples, labels, retrieval, separation
from workers.evaluation.bootstrap import Interval
from workers.evaluation.embedding import embed
from workers.evaluation.metrics import LABELS, RETRIEVAL
from workers.evaluation.questions import NoQuestionsError, questions_of
from workers.evaluation.split import Split

Floats = npt.NDArray[np.floating]
Indices = npt.NDArray[np.int64]

#: From −1 to 1.
_EDGES = np.linspace(-1, 1, 41)
#: Of Measured, besides `values`.
_ARRAYS = ("chances", "clusters", "places", "right", "wrong")


@dataclass(frozen=True, eq=False)
class Measured:
    """What an encoder makes of the questions; n queries, r right and w wrong pairs, m documents."""

    values: dict[MetricName, Floats]  # (n,) of the metrics that are means over queries
    chances: Floats  # (r,) whose mean is the AUC
    clusters: Indices | None  # (m,) of labelled texts
    places: Indices  # (n,) of each query's first answer, from 1
    right: Floats  # (r,) cosines
    wrong: Floats  # (w,)

    def state_dict(self) -> dict[str, Any]:
        """The arrays as tensors, which share their memory."""
        return {
            "values": {name: torch.from_numpy(values) for name, values in self.values.items()},
            **{name: _tensor(getattr(self, name)) for name in _ARRAYS},
        }

    @classmethod
    def of_state_dict(cls, state: dict[str, Any]) -> Self:
        """Exactly what `state_dict` was taken of."""
        values = {name: tensor.numpy() for name, tensor in state["values"].items()}
        return cls(values=values, **{name: _array(state[name]) for name in _ARRAYS})


class Evaluator:
    """Asks encoders the questions of one split. Raises NoQuestionsError if there is nothing to ask."""

    def __init__(self, split: Split, *, seed: int, before_batch: Callable[[], None] = lambda: None) -> None:
        """before_batch: called before each forward; may raise, to stop."""
        self.split = split
        self.seed = seed
        self.questions = questions_of(split.evaluation, split.training[0], seed=seed)
        self.task: Task = "retrieval" if self.questions.labels is None else "labels"
        self.metrics = RETRIEVAL if self.questions.labels is None else LABELS
        self._pairs = separation.drawn_pairs(self.questions, seed=seed)
        if not len(self._pairs.wrong):
            raise NoQuestionsError("every text of the split is the answer to every question")
        self._before_batch = before_batch

    def measure(self, encoder: AnyEncoder) -> Measured:
        """Embed and search. The encoder's mode is left as it is."""
        asked = self.questions
        documents = self._embed(encoder, asked.documents)
        queries = documents[asked.itself] if asked.labels is not None else self._embed(encoder, asked.queries)
        found = retrieval.places(queries, self._with_distractors(encoder, documents), asked)
        right = separation.cosines(self._pairs.right, queries, documents)
        wrong = separation.cosines(self._pairs.wrong, queries, documents)
        return Measured(
            values=self._values(found, documents),
            chances=separation.chances(right, wrong),
            clusters=self._clusters(documents),
            places=retrieval.best_places(found, asked),
            right=right,
            wrong=wrong,
        )

    def measured_of(self, state: dict[str, Any]) -> Measured:
        """What `Measured.state_dict` gave."""
        return Measured.of_state_dict(state)

    def score(self, measured: Measured, metric: MetricName) -> float:
        """One number. Raises KeyError for a metric that isn't of this task."""
        if metric == "auc":
            return float(measured.chances.mean())
        if metric == "nmi" and measured.clusters is not None:
            return labels.mutual_information(self._label_numbers(), measured.clusters)
        return float(measured.values[metric].mean())

    def compare(self, base: Measured, tuned: Measured) -> list[MetricComparison]:
        """Each metric of both, with the interval of the difference; the main one first."""
        return [
            compared(name, self.score(base, name), self.score(tuned, name), self._interval(name, base, tuned))
            for name in self.metrics
        ]

    def histogram(self, base: Measured, tuned: Measured) -> CosineHistogram:
        """Cosines of right and of wrong pairs under both encoders."""
        return histogram((base.right, tuned.right), (base.wrong, tuned.wrong))

    def most_changed(self, base: Measured, tuned: Measured, count: int) -> tuple[Sequence[int], Sequence[int]]:
        """The queries that gained and those that lost most, by 1 / place; at most `count` of each."""
        return examples.most_changed(1 / tuned.places - 1 / base.places, count)

    def row_of(self, query: int) -> int:
        return int(self.questions.rows[query])

    def example(self, query: int, row: Row, base: Measured, tuned: Measured) -> ChangedExample:
        """How a query's answer moved; it stands in this row."""
        number = self.row_of(query)
        labelled = self.task == "labels"
        return ChangedExample(
            query=examples.told(row.inputs[0], number),
            answer=examples.shortened(row.label or "") if labelled else examples.told(row.inputs[1], number),
            place_before=int(base.places[query]),
            place_after=int(tuned.places[query]),
        )

    def told_split(self, file_id: str) -> EvaluationSplit:
        """What was asked about; `file_id` is of the file that the split is of."""
        asked = self.questions
        return EvaluationSplit(
            id=self.split.id,
            source=self.split.source,
            file=file_id,
            rows=self.split.evaluation.row_count,
            queries=len(asked.queries),
            documents=len(asked.documents) + len(asked.distractors),
            distractors=len(asked.distractors),
            groups=len(set(asked.groups.tolist())),
        )

    def interval(self, measured: Measured, metric: MetricName) -> Interval:
        """The 95 % interval of one encoder's metric."""
        nothing = replace(
            measured,
            values={name: np.zeros_like(values) for name, values in measured.values.items()},
            chances=None if measured.chances is None else np.zeros_like(measured.chances),
            clusters=None if measured.clusters is None else np.zeros_like(measured.clusters),  # of which the NMI is 0
        )
        return self._interval(metric, nothing, measured)

    def _interval(self, name: MetricName, base: Measured, tuned: Measured) -> Interval:
        groups = self.questions.groups
        if name == "auc":
            asking = self._pairs.right[:, 0]
            return bootstrap.of_means(tuned.chances - base.chances, groups[asking], seed=self.seed)
        if name == "nmi" and base.clusters is not None and tuned.clusters is not None:
            numbers, before, after = self._label_numbers(), base.clusters, tuned.clusters

            def difference(drawn: Indices) -> float:
                return labels.mutual_information(numbers[drawn], after[drawn]) - labels.mutual_information(
                    numbers[drawn], before[drawn]
                )

            return bootstrap.of_statistic(difference, len(numbers), seed=self.seed)
        return bootstrap.of_means(tuned.values[name] - base.values[name], groups, seed=self.seed)

    def _values(self, found: Indices, documents: Floats) -> dict[MetricName, Floats]:
        asked = self.questions
        if asked.labels is None:
            return {name: values(found, asked) for name, values in retrieval.METRICS.items()}
        return {
            "map@r": retrieval.average_precision_at_r(found, asked),
            "knn_accuracy": labels.neighbours_agree(documents, asked),
        }

    def _clusters(self, documents: Floats) -> Indices | None:
        if self.questions.labels is None:
            return None
        return labels.clusters(documents, len(np.unique(self.questions.labels)), seed=self.seed)

    def _label_numbers(self) -> Indices:
        """From 0, of each document; (m,)."""
        assert self.questions.labels is not None  # noqa: S101 (asked of labelled texts only)
        numbers: Indices = np.unique(self.questions.labels, return_inverse=True)[1]
        return numbers

    def _embed(self, encoder: AnyEncoder, items: Indices) -> npt.NDArray[np.float32]:
        return embed(encoder, self.split.evaluation, items, before_batch=self._before_batch)

    def _with_distractors(self, encoder: AnyEncoder, documents: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        if not len(self.questions.distractors):
            return documents
        others = embed(encoder, self.split.training[0], self.questions.distractors, before_batch=self._before_batch)
        return np.concatenate([documents, others])


def compared(name: MetricName, before: float, after: float, interval: Interval) -> MetricComparison:
    """A metric of the base and of the tuned encoder, with the interval of the difference."""
    return MetricComparison(
        name=name,
        base=before,
        tuned=after,
        difference=after - before,
        low=interval.low,
        high=interval.high,
        conclusion="better" if interval.low > 0 else "worse" if interval.high < 0 else "no_clear_difference",
    )


def in_words(metric: MetricComparison) -> str:
    """A metric's comparison as a sentence, without its full stop."""
    conclusions = {
        "better": "the tuned model is better",
        "worse": "the tuned model is worse",
        "no_clear_difference": "the interval holds 0, so that may be chance",
    }
    return (
        f"{TITLES[metric.name]} on rows that were not trained on: {metric.base:.3f} before training, "
        f"{metric.tuned:.3f} after; the difference is {metric.difference:+.3f} (95 % interval {metric.low:+.3f} … "
        f"{metric.high:+.3f}): {conclusions[metric.conclusion]}"
    )


def histogram(right: tuple[Floats, Floats], wrong: tuple[Floats, Floats]) -> CosineHistogram:
    """Cosines of right and of wrong pairs, before and after."""
    return CosineHistogram(
        edges=[round(float(edge), 3) for edge in _EDGES],
        right_before=_counts(right[0]),
        right_after=_counts(right[1]),
        wrong_before=_counts(wrong[0]),
        wrong_after=_counts(wrong[1]),
    )


def _tensor(values: npt.NDArray[Any] | None) -> Tensor | None:
    return None if values is None else torch.from_numpy(values)


def _array(tensor: Tensor | None) -> Any:
    return None if tensor is None else tensor.numpy()


def _counts(cosines: Floats) -> list[int]:
    return [int(count) for count in np.histogram(np.clip(cosines, -1, 1), _EDGES)[0]]
