"""A job's evaluation from its first look at the base encoder to what the API answers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from api_schemas.evaluation import ChangedExample, Evaluation, EvaluationSplit, MetricAtStep, MetricName
from api_schemas.jobs import Contrastive
from encoders.text import TextEncoder
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
    """Wraps a job's training: `measure_base`, `train` in place of the trainer's `run`, then `result`.

    Without a split, or without anything to ask in it, it is the trainer's `run` and no result.
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

    def measure_base(self) -> None:
        """To be called while the encoder is still the base: also in a training that then goes on somewhere."""
        if self._evaluator is not None:
            self._base = self._measured(self._evaluator)

    def train(self) -> None:
        """Take the steps, and put the weights in place that are kept. Raises what `Trainer.run` raises."""
        if self.early_stopping is None or self._base is None or self._evaluator is None:
            self._run(self._recorder.step)
            self._kept_step = self._trainer.step
            return
        watch = self.early_stopping
        watch.begin(self._evaluator.score(self._base, self._metric))
        if not watch.stopped:
            with watch.until_stopped():
                self._run(watch.watching(self._recorder.step))
        self._recorder.flush()
        best = watch.restore_best()
        self._kept_step = self._trainer.step if best is None else best
        if best is not None:
            self._recorder.say(f"The weights of step {best} are kept, where the metric was best")

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
            stopped_early=self.early_stopping is not None and self.early_stopping.stopped,
        )

    @property
    def _encoder(self) -> TextEncoder:
        return self._trainer.encoder

    def _measured(self, evaluator: Evaluator) -> Measured:
        with explaining_lack_of_memory(self._trainer.config, "The evaluation"):
            return evaluator.measure(self._encoder)

    def _run(self, on_step: Callable[[StepReport], None]) -> None:
        self._trainer.run(on_step=on_step, should_stop=self._should_stop)

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
        return [
            ChangedExample(
                query=_shortened(str(rows[number].inputs[0])),
                answer=_shortened(str(rows[number].inputs[1]) if rows[number].label is None else rows[number].label),
                place_before=int(base.places[query]),
                place_after=int(tuned.places[query]),
            )
            for query, number in zip(queries, numbers, strict=True)
        ]


def _shortened(text: str | None) -> str:
    text = text or ""
    return text if len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - 1] + "…"
