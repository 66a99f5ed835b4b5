"""A job's evaluation from its first look at the base encoder to what the API answers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from api_schemas.evaluation import ChangedExample, Evaluation, EvaluationSplit, MetricAtStep, MetricName
from api_schemas.jobs import Contrastive
from encoders.loading import AnyEncoder
from workers.data.row import Row
from workers.evaluation.bootstrap import RESAMPLES
from workers.evaluation.early_stopping import EarlyStopping
from workers.evaluation.evaluator import Evaluator, Measured, histogram, in_words, most_changed
from workers.evaluation.questions import NoQuestionsError
from workers.evaluation.split import Split
from workers.training.recorder import Recorder
from workers.training.trainer import StepReport, Trainer, TrainingInterrupted, explaining_lack_of_memory

#: Examples told of each kind.
_EXAMPLES = 5
_LONGEST_TEXT = 200

#: Rows of the split's file by number.
ReadRows = Callable[[Collection[int]], Mapping[int, Row]]


@dataclass(frozen=True)
class Subject:
    """What is evaluated: the job, and the file that its split is of."""

    job_id: str
    file_id: str
    read_rows: ReadRows


class JobEvaluation:
    """Goes along with a job's training: `begin`, `after_step`, `keep`, then `result`.

    Without a split, or without anything to ask in it, all of these do nothing, and there is no result.

    Its state is exact: one that is loaded before `begin` goes on as the one that was saved would have.
    """

    def __init__(
        self,
        trainer: Trainer,
        split: Split | None,
        method: Contrastive,
        recorder: Recorder,
        should_stop: Callable[[], bool],
    ) -> None:
        self._trainer = trainer
        self._recorder = recorder
        self._should_stop = should_stop
        self._evaluator = self._evaluator_of(split)
        self._metric: MetricName = self._main_metric(method)
        self._base: Measured | None = None
        self._kept_step = 0
        #: None where nothing is evaluated while training.
        self.early_stopping = self._early_stopping_of(method)

    @property
    def fingerprint(self) -> str | None:
        """What is asked about: the split's id."""
        return None if self._evaluator is None else self._evaluator.split.id

    @property
    def stopped(self) -> bool:
        """Whether no further step is to be taken."""
        return self.early_stopping is not None and self.early_stopping.stopped

    def until_stopped(self) -> AbstractContextManager[None]:
        """Leaves the block where training stops early."""
        return nullcontext() if self.early_stopping is None else self.early_stopping.until_stopped()

    def begin(self) -> None:
        """Measure the base encoder, unless the loaded state has that, and what a stop left unmeasured.

        Raises StoppedEarly, and TrainingInterrupted as `after_step` does.
        """
        evaluator = self._evaluator
        if evaluator is None:
            return
        if self._base is None:
            self._base = self._measured(evaluator)
        if self.early_stopping is not None and not self.stopped:
            self.early_stopping.begin(evaluator.score(self._base, self._metric))
            self.early_stopping.after_step(self._trainer.step, self._trainer.total_steps)

    def after_step(self, report: StepReport) -> None:
        """Evaluate if it is time to. Raises StoppedEarly; TrainingInterrupted if it is asked to stop meanwhile."""
        if self.early_stopping is not None:
            self.early_stopping.after_step(report.step, report.total_steps)

    def keep(self) -> None:
        """Put the weights in place that become the model."""
        best = None if self.early_stopping is None else self.early_stopping.restore_best()
        self._kept_step = self._trainer.step if best is None else best
        if best is not None:
            self._recorder.say(f"The weights of step {best} are kept, where the metric was best")

    def state_dict(self) -> dict[str, Any]:
        """Numbers and tensors only."""
        return {
            "base": None if self._base is None else self._base.state_dict(),
            "early_stopping": None if self.early_stopping is None else self.early_stopping.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["base"] is not None:
            self._base = Measured.of_state_dict(state["base"])
        if self.early_stopping is not None:
            self.early_stopping.load_state_dict(state["early_stopping"])

    def result(self, subject: Subject) -> Evaluation | None:
        """Measure the tuned encoder beside the base."""
        evaluator, base = self._evaluator, self._base
        if evaluator is None or base is None:
            return None
        tuned = self._measured(evaluator)
        metrics = evaluator.compare(base, tuned)
        metrics.sort(key=lambda each: each.name != self._metric)
        gained, lost = most_changed(base, tuned, _EXAMPLES)
        examples = self._examples([*gained, *lost], base, tuned, subject)
        return Evaluation(
            job=subject.job_id,
            task=evaluator.task,
            metric=self._metric,
            summary=in_words(metrics[0]),
            split=self._split_of(evaluator, subject),
            metrics=metrics,
            resamples=RESAMPLES,
            seed=evaluator.seed,
            gained=examples[: len(gained)],
            lost=examples[len(gained) :],
            cosines=histogram(base, tuned),
            history=self._history(base, tuned),
            kept_step=self._kept_step,
            stopped_early=self.stopped,
        )

    @property
    def _encoder(self) -> AnyEncoder:
        return self._trainer.encoder

    def _measured(self, evaluator: Evaluator) -> Measured:
        with explaining_lack_of_memory(self._trainer.config, "The evaluation"):
            return evaluator.measure(self._encoder)

    def _stop_if_asked(self) -> None:
        if self._should_stop():
            raise TrainingInterrupted(self._trainer.step, self._trainer.total_steps)

    def _evaluator_of(self, split: Split | None) -> Evaluator | None:
        if split is None:
            return None
        try:
            return Evaluator(split, seed=self._trainer.config.seed, before_batch=self._stop_if_asked)
        except NoQuestionsError as reason:
            self._recorder.say(f"The job is not evaluated: {reason}")
            return None

    def _main_metric(self, method: Contrastive) -> MetricName:
        metric = method.evaluation.metric
        if metric != "auto":
            return metric
        return "map@r" if self._evaluator is not None and self._evaluator.task == "labels" else "mrr"

    def _early_stopping_of(self, method: Contrastive) -> EarlyStopping | None:
        every, evaluator = method.evaluation.every_steps, self._evaluator
        if not isinstance(every, int) or evaluator is None:
            return None
        stopping = method.early_stopping
        return EarlyStopping(
            self._encoder,
            lambda: evaluator.score(self._measured(evaluator), self._metric),
            every_steps=every,
            patience=stopping.patience if stopping else None,
            min_delta=stopping.min_delta if stopping else 0.0,
            keep_best=method.evaluation.keep == "best",
            say=self._recorder.say,
        )

    def _history(self, base: Measured, tuned: Measured) -> list[MetricAtStep]:
        if self.early_stopping is not None:
            taken = self.early_stopping.history
        else:
            assert self._evaluator is not None  # noqa: S101 (there is a result)
            values = [self._evaluator.score(each, self._metric) for each in (base, tuned)]
            taken = [(0, values[0]), (self._kept_step, values[1])]
        return [MetricAtStep(step=step, value=value) for step, value in taken]

    def _split_of(self, evaluator: Evaluator, subject: Subject) -> EvaluationSplit:
        asked = evaluator.questions
        return EvaluationSplit(
            id=evaluator.split.id,
            source=evaluator.split.source,
            file=subject.file_id,
            rows=evaluator.split.evaluation.row_count,
            queries=len(asked.queries),
            documents=len(asked.documents) + len(asked.distractors),
            distractors=len(asked.distractors),
            groups=len(set(asked.groups.tolist())),
        )

    def _examples(self, queries: list[int], base: Measured, tuned: Measured, subject: Subject) -> list[ChangedExample]:
        assert self._evaluator is not None  # noqa: S101 (there is a result)
        numbers = [int(self._evaluator.questions.rows[query]) for query in queries]
        rows = subject.read_rows(set(numbers))
        labelled = self._evaluator.task == "labels"
        return [
            ChangedExample(
                query=_told(rows[number].inputs[0], number),
                answer=_shortened(rows[number].label or "") if labelled else _told(rows[number].inputs[1], number),
                place_before=int(base.places[query]),
                place_after=int(tuned.places[query]),
            )
            for query, number in zip(queries, numbers, strict=True)
        ]


def _told(given: Any, number: int) -> str:
    """A text; of a vector, which nobody can read, where it stands."""
    return _shortened(given) if isinstance(given, str) else f"row {number + 1}"


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - 1] + "…"
