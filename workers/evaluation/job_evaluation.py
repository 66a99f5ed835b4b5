"""A job's evaluation from its first look at the base encoder to what the API answers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

from api_schemas.evaluation import (
    ChangedExample,
    CosineHistogram,
    Evaluation,
    EvaluationSplit,
    MetricAtStep,
    MetricComparison,
    MetricName,
    Task,
)
from api_schemas.methods import Contrastive
from encoders.loading import AnyEncoder
from workers.data.row import Row
from workers.evaluation.bootstrap import RESAMPLES
from workers.evaluation.early_stopping import EarlyStopping
from workers.evaluation.evaluator import Evaluator, in_words
from workers.evaluation.questions import NoQuestionsError
from workers.evaluation.scored_evaluator import ScoredEvaluator
from workers.evaluation.split import Split
from workers.training.recorder import Recorder
from workers.training.trainer import StepReport, Trainer, TrainingInterrupted, explaining_lack_of_memory

#: Examples told of each kind.
_EXAMPLES = 5

#: Rows of the split's file by number.
ReadRows = Callable[[Collection[int]], Mapping[int, Row]]


@dataclass(frozen=True)
class Subject:
    """What is evaluated: the job, and the file that its split is of."""

    job_id: str
    file_id: str
    read_rows: ReadRows


class SplitEvaluator(Protocol):
    """Compares encoders on one split, of whichever task. What it measures only it can read."""

    split: Split
    seed: int
    task: Task
    metrics: tuple[MetricName, ...]  # the main one first

    def measure(self, encoder: AnyEncoder) -> Any: ...

    def measured_of(self, state: dict[str, Any]) -> Any: ...

    def score(self, measured: Any, metric: MetricName) -> float: ...

    def compare(self, base: Any, tuned: Any) -> list[MetricComparison]: ...

    def histogram(self, base: Any, tuned: Any) -> CosineHistogram: ...

    def most_changed(self, base: Any, tuned: Any, count: int) -> tuple[Sequence[int], Sequence[int]]: ...

    def row_of(self, example: int, /) -> int: ...

    def example(self, example: int, row: Row, base: Any, tuned: Any, /) -> ChangedExample: ...

    def told_split(self, file_id: str) -> EvaluationSplit: ...


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
        self._base: Any = None  # what the evaluator measured of the base encoder
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
        if state["base"] is not None and self._evaluator is not None:
            self._base = self._evaluator.measured_of(state["base"])
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
        gained, lost = evaluator.most_changed(base, tuned, _EXAMPLES)
        rows = subject.read_rows({evaluator.row_of(each) for each in (*gained, *lost)})

        def told(example: int) -> ChangedExample:
            return evaluator.example(example, rows[evaluator.row_of(example)], base, tuned)

        return Evaluation(
            job=subject.job_id,
            task=evaluator.task,
            metric=self._metric,
            summary=in_words(metrics[0]),
            split=evaluator.told_split(subject.file_id),
            metrics=metrics,
            resamples=RESAMPLES,
            seed=evaluator.seed,
            gained=[*map(told, gained)],
            lost=[*map(told, lost)],
            cosines=evaluator.histogram(base, tuned),
            history=self._history(base, tuned),
            kept_step=self._kept_step,
            stopped_early=self.stopped,
        )

    @property
    def _encoder(self) -> AnyEncoder:
        return self._trainer.encoder

    def _measured(self, evaluator: SplitEvaluator) -> Any:
        with explaining_lack_of_memory(self._trainer.config, "The evaluation"):
            return evaluator.measure(self._encoder)

    def _stop_if_asked(self) -> None:
        if self._should_stop():
            raise TrainingInterrupted(self._trainer.step, self._trainer.total_steps)

    def _evaluator_of(self, split: Split | None) -> SplitEvaluator | None:
        if split is None:
            return None
        kind: type[Evaluator] | type[ScoredEvaluator]
        kind = Evaluator if split.evaluation.scores is None else ScoredEvaluator
        try:
            return kind(split, seed=self._trainer.config.seed, before_batch=self._stop_if_asked)
        except NoQuestionsError as reason:
            self._recorder.say(f"The job is not evaluated: {reason}")
            return None

    def _main_metric(self, method: Contrastive) -> MetricName:
        metric = method.evaluation.metric
        if metric != "auto":
            return metric
        return "mrr" if self._evaluator is None else self._evaluator.metrics[0]

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

    def _history(self, base: Any, tuned: Any) -> list[MetricAtStep]:
        if self.early_stopping is not None:
            taken = self.early_stopping.history
        else:
            assert self._evaluator is not None  # noqa: S101 (there is a result)
            values = [self._evaluator.score(each, self._metric) for each in (base, tuned)]
            taken = [(0, values[0]), (self._kept_step, values[1])]
        return [MetricAtStep(step=step, value=value) for step, value in taken]
