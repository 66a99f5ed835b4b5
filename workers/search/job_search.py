"""A job's search: trials from the same weights with the same seed, compared on rows set aside for that alone.

A trial that has ended is kept in two folders (see `storage.search_trials`) and not made again:

    trial-N      trial.json with its choices and course, measured.safetensors with its answers to the selection rows
    weights-N    encoder.safetensors and weights.json, only of the best so far

A trial that is interrupted begins again: within a trial there are no checkpoints.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import structlog
import torch
from torch import Tensor

from api_schemas.evaluation import TITLES, MetricName, Search, SearchTrial
from api_schemas.methods import Contrastive
from encoders.loading import AnyEncoder
from storage.search_trials import SearchTrials
from workers.evaluation.evaluator import Evaluator, Measured
from workers.evaluation.split import Split
from workers.search import study
from workers.search.selection import selection_of
from workers.search.space import Choices, Space, in_words, with_choices
from workers.search.study import PARTS, Outcome
from workers.training import state_files
from workers.training.config import TrainingConfig
from workers.training.lack_of_memory import OutOfMemoryInTraining
from workers.training.precision import Precision
from workers.training.ranks import Ranks
from workers.training.recorder import Recorder
from workers.training.state_files import StateFileError
from workers.training.trainer import (
    EmbeddingsCollapsedError,
    NonFiniteLossError,
    StepReport,
    Trainer,
    TrainingInterrupted,
)

log = structlog.get_logger("likeness.search")

#: What is written and read here.
VERSION = 1
#: Of a training that says of its hyperparameters that they are no good.
_FAILURES = (NonFiniteLossError, EmbeddingsCollapsedError, OutOfMemoryInTraining)


class SearchFailedError(NonFiniteLossError):
    """No trial came to its end."""


class _Hopeless(Exception):  # noqa: N818 (reads as what happened)
    """The trial is given up."""


@dataclass(frozen=True, eq=False)
class Trial:
    """A trial that has ended. `measured` is None for one that was given up."""

    outcome: Outcome
    steps: int  # taken
    trained_tokens: int
    precision: Precision
    micro_batch_size: int
    failure: str | None  # why its training failed, if it did
    measured: Measured | None


@dataclass(frozen=True, eq=False)
class Found:
    """What became of a search; the encoder has the weights again that it began with."""

    told: Search
    method: Contrastive  # with the choices of the best trial
    config: TrainingConfig
    training: Split  # `training` is what the trials trained on
    steps: range  # the best trial's, as they are numbered in the job's metrics
    best: Trial
    weights: dict[str, Tensor]

    def give_weights(self, trainer: Trainer) -> None:
        """Make a trainer of this config what the best trial's was at its end."""
        trainer.encoder.load_state_dict(self.weights)
        trainer.step = self.best.steps
        trainer.trained_tokens = self.best.trained_tokens


class JobSearch:
    """Made before the first step: trials begin with the encoder's weights of that moment."""

    def __init__(
        self,
        encoder: AnyEncoder,
        split: Split,
        method: Contrastive,
        *,
        seed: int,
        recorder: Recorder,
        stored: SearchTrials,
        should_stop: Callable[[], bool],
        on_step: Callable[[StepReport], None] = lambda _report: None,
        ranks: Ranks | None = None,
    ) -> None:
        """split: the job's; of it only what is trained on is looked at. Raises ValueError if none can be set aside."""
        selection = selection_of(split, seed)
        if selection is None:
            raise ValueError("No rows can be set aside to compare trials on.")
        self._encoder = encoder
        self._selection = selection
        self._method = method
        self._seed = seed
        self._recorder = recorder
        self._stored = stored
        self._should_stop = should_stop
        self._on_step = on_step
        self._ranks = ranks
        self._space = Space.of(method, rows=sum(data.row_count for data in selection.training))
        self._evaluator = Evaluator(selection, seed=seed, before_batch=self._stop_if_asked)
        self._metric: MetricName = _main_metric(method, split, self._evaluator)
        self._trials: list[Trial] = []
        self._base = _copied(encoder.state_dict())
        self._at = (0, 1)  # steps taken of all, for whoever interrupts

    def run(self) -> Found:
        """Make the trials that are left. Raises TrainingInterrupted, SearchFailedError; OSError as the disk does."""
        self._say_what_comes()
        self._forget_a_best_without_weights()
        try:
            for number in range(self._space.trials):
                trial = self._kept(number)
                if trial is None:
                    trial = self._made(number)
                self._trials.append(trial)
        finally:
            self._encoder.load_state_dict(self._base)
        return self._found()

    def _say_what_comes(self) -> None:
        asked, made = self._space.asked_trials, self._space.trials
        fewer = "" if made == asked else f" (there are no {asked} different ones)"
        self._recorder.say(
            f"Search of {' and '.join(self._space.defaults).replace('_', ' ')}: {made} trials{fewer}, compared by "
            f"{TITLES[self._metric]} on {self._selection.evaluation.row_count} rows that are set aside from the "
            "training for it. The rows of the evaluation play no part in the choice"
        )

    def _made(self, number: int) -> Trial:
        choices = study.propose(self._space, number, self._outcomes, seed=self._seed)
        self._encoder.load_state_dict(self._base)
        self._stored.remove("weights", number)  # of a trial that wasn't kept, or of another search
        trial = self._trained(number, choices)
        best = study.best([*self._outcomes, trial.outcome])
        if best is trial.outcome:
            with self._stored.publishing("weights", number) as folder:
                skeleton = state_files.write({"encoder": self._encoder.state_dict()}, folder)
                (folder / "weights.json").write_text(json.dumps(skeleton))
        self._keep(trial)
        if best is trial.outcome:
            self._stored.keep_only("weights", number)
        self._recorder.say(self._end_of(trial))
        return trial

    def _trained(self, number: int, choices: Choices) -> Trial:
        config = TrainingConfig.from_method(with_choices(self._method, choices), seed=self._seed)
        if self._trials:  # measured once, so that trials differ by their choices alone
            config = replace(config, precision=self._trials[0].precision)
        trainer = Trainer(
            self._encoder, self._selection.training, config, on_notice=lambda notice: self._recorder.say(*notice),
            ranks=self._ranks,
        )  # fmt: skip
        precision = trainer.resolve().precision
        before = sum(trial.steps for trial in self._trials)
        whole = before + trainer.total_steps * (self._space.trials - number)
        measured: dict[int, float] = {}
        answers: list[Measured] = []
        parts = {-(-trainer.total_steps * part // PARTS): part for part in range(1, PARTS + 1)}

        def on_step(report: StepReport) -> None:
            told = replace(report, step=before + report.step, total_steps=whole)
            self._at = (told.step, whole)
            self._recorder.step(told)
            self._on_step(told)
            part = parts.get(report.step)
            if part is None:
                return
            answers[:] = [self._evaluator.measure(self._encoder)]
            measured[part] = self._evaluator.score(answers[0], self._metric)
            if part < PARTS and study.is_hopeless(self._space, self._outcomes, choices, measured):
                raise _Hopeless

        failure, pruned = None, False
        try:
            trainer.run(on_step=on_step, should_stop=self._should_stop)
        except _Hopeless:
            pruned = True
        except _FAILURES as error:
            failure, pruned = str(error), True
        except TrainingInterrupted:
            self._recorder.write_if_possible()
            raise
        outcome = Outcome(number, choices, measured, pruned)
        kept = None if pruned else answers[0]
        size = trainer.gradient.micro_batch_size
        return Trial(outcome, trainer.step, trainer.trained_tokens, precision, size, failure, kept)

    @property
    def _outcomes(self) -> list[Outcome]:
        return [trial.outcome for trial in self._trials]

    def _stop_if_asked(self) -> None:
        if self._should_stop():
            raise TrainingInterrupted(*self._at)

    def _keep(self, trial: Trial) -> None:
        measured = None if trial.measured is None else trial.measured.state_dict()
        with self._stored.publishing("trial", trial.outcome.number) as folder:
            content = {
                "run": self._fingerprint(),
                "outcome": asdict(trial.outcome),
                "steps": trial.steps,
                "trained_tokens": trial.trained_tokens,
                "precision": trial.precision,
                "micro_batch_size": trial.micro_batch_size,
                "failure": trial.failure,
                "state": state_files.write({"measured": measured}, folder),
            }
            (folder / "trial.json").write_text(json.dumps(content))

    def _kept(self, number: int) -> Trial | None:
        """A trial that an earlier attempt has ended; what isn't of this search, or not whole, is removed."""
        if not self._stored.is_whole("trial", number):
            self._stored.remove("trial", number)
            return None
        folder = self._stored.folder("trial", number)
        try:
            content = json.loads((folder / "trial.json").read_text())
            if content["run"] != self._fingerprint():
                raise ValueError("it is of another search")
            outcome = content["outcome"]
            outcome["measured"] = {int(part): value for part, value in outcome["measured"].items()}
            state = state_files.read(content["state"], folder)["measured"]
            return Trial(
                outcome=Outcome(**outcome),
                steps=content["steps"],
                trained_tokens=content["trained_tokens"],
                precision=content["precision"],
                micro_batch_size=content["micro_batch_size"],
                failure=content["failure"],
                measured=None if state is None else Measured.of_state_dict(state),
            )
        except (OSError, ValueError, KeyError, TypeError, StateFileError) as error:
            log.warning("trial_rejected", number=number, reason=str(error))
            self._stored.remove("trial", number)
            return None

    def _forget_a_best_without_weights(self) -> None:
        """Its weights may be torn, or removed by an attempt that was given up: then it is trained again."""
        kept = [trial.outcome for trial in map(self._kept, range(self._space.trials)) if trial is not None]
        best = study.best(kept)
        if best is not None and not self._stored.is_whole("weights", best.number):
            self._stored.remove("weights", best.number)
            self._stored.remove("trial", best.number)

    def _fingerprint(self) -> dict[str, Any]:
        """What decides a trial, besides the weights that the job begins with."""
        run = {
            "format": VERSION,
            "selection": self._selection.id,
            "data": [data.fingerprint for data in self._selection.training],
            "method": self._method.model_dump(),
            "seed": self._seed,
        }
        as_read: dict[str, Any] = json.loads(json.dumps(run))
        return as_read

    def _found(self) -> Found:
        best = study.best(self._outcomes)
        if best is None:
            raise SearchFailedError(f"No trial of the search came to its end. The first one: {self._trials[0].failure}")
        trial = self._trials[best.number]
        method = with_choices(self._method, best.choices)
        resolved = method.hyperparameters.model_copy(
            update={"precision": trial.precision, "micro_batch_size": trial.micro_batch_size}
        )
        method = method.model_copy(update={"hyperparameters": resolved})
        if not self._stored.is_whole("weights", best.number):
            # Looked at when the search went on, and hours may lie between. The next attempt makes the trial again.
            raise OSError(errno.EIO, "the best trial's weights are not as they were written", f"weights-{best.number}")
        folder = self._stored.folder("weights", best.number)
        weights = state_files.read(json.loads((folder / "weights.json").read_text()), folder)["encoder"]
        told = self._told(trial)
        self._recorder.say(told.said)
        first = sum(each.steps for each in self._trials[: best.number]) + 1
        config = TrainingConfig.from_method(method, seed=self._seed)
        steps = range(first, first + trial.steps)
        return Found(told, method, config, self._selection, steps, trial, weights)

    def _told(self, best: Trial) -> Search:
        return Search(
            trials=[self._told_trial(trial) for trial in self._trials],
            chosen=best.outcome.number + 1,
            metric=self._metric,
            rows=self._selection.evaluation.row_count,
            said=self._said(best),
        )

    def _told_trial(self, trial: Trial) -> SearchTrial:
        ended = trial.outcome
        low, high = (None, None) if trial.measured is None else self._evaluator.interval(trial.measured, self._metric)
        return SearchTrial(
            number=ended.number + 1,
            choices=ended.choices,
            metric=ended.measured[max(ended.measured)] if ended.measured else None,
            low=low,
            high=high,
            steps=trial.steps,
            pruned=ended.pruned,
        )

    def _end_of(self, trial: Trial) -> str:
        told, title = self._told_trial(trial), TITLES[self._metric]
        said = f"Trial {told.number} of {self._space.trials}: {in_words(told.choices)}: "
        if trial.failure is not None:
            return f"{said}failed. {trial.failure}"
        if told.pruned:
            return f"{said}given up after {told.steps} steps, where {title} was {told.metric:.3f}, below the median"
        return f"{said}{title} {told.metric:.3f} (95 % interval {told.low:.3f} … {told.high:.3f})"

    def _said(self, best: Trial) -> str:
        """Whether it matters, and how many trials it took."""
        default, title = self._trials[0], TITLES[self._metric]
        pruned = sum(trial.outcome.pruned for trial in self._trials)
        took = f"It took {len(self._trials)} trials, of which {pruned} were given up early"
        chosen = (
            f"{in_words(best.outcome.choices)} was best of all that was tried, with {title} {best.outcome.value:.3f}"
        )
        if best is default:
            return f"There is nothing to gain here: the default, {chosen}. {took}"
        if default.measured is None or best.measured is None:
            return f"{chosen}; training with the default failed, so there is no comparison with it. {took}"
        compared = next(
            each for each in self._evaluator.compare(default.measured, best.measured) if each.name == self._metric
        )
        by = (
            f"{chosen}, against {compared.base:.3f} with the default, {in_words(default.outcome.choices)}; the "
            f"difference is {compared.difference:+.3f} (95 % interval {compared.low:+.3f} … {compared.high:+.3f})"
        )
        if compared.conclusion == "no_clear_difference":
            return f"The choice hardly matters here: {by}, which holds 0 and may be chance. {took}"
        return f"The choice matters here: {by}. {took}"


def _main_metric(method: Contrastive, split: Split, evaluator: Evaluator) -> MetricName:
    """The job's, unless it is evaluated on rows of another kind: then the first of those that these rows have.

    No rows that are trained on have scores, and what the AUC of scored pairs tells apart is not what theirs does.
    """
    metric = method.evaluation.metric
    return metric if metric in evaluator.metrics and split.evaluation.scores is None else evaluator.metrics[0]


@torch.no_grad()
def _copied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in state.items()}
