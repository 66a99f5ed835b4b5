"""What a running attempt tells the outside: events, metrics and progress, each write fenced by its attempt."""

import secrets
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import structlog
from sqlalchemy.exc import OperationalError

from api_schemas.evaluation import Evaluation
from storage import attempts, job_moves
from storage.database import Database
from workers.patience import patiently
from workers.shared_page import page_of_watcher
from workers.training.pacing import pause_after
from workers.training.trainer import StepReport

log = structlog.get_logger("likeness.training")

#: At most so often are steps written, for nobody watches faster …
_WRITE_EVERY_SECONDS = 0.5
#: … and so that writing takes such a share of the time, for a commit costs some milliseconds …
_WRITING_SHARE = 1 / 400
#: … but no rarer than so, however long the last one took.
_RAREST_SECONDS = 5.0
#: How long a database that was away is left alone: to find out that it still is may take as long as an answer may.
_TRY_AGAIN_SECONDS = 5.0


@dataclass(frozen=True)
class Attempt:
    """Which attempt of which job writes."""

    job_id: str
    number: int


class _Said(NamedTuple):
    """What is to become an event."""

    message: str
    level: job_moves.Level
    key: str  # by which it is told from others, if it is written twice because the answer was lost


class Recorder:
    """Writes for one attempt. Every method raises StaleAttempt once the job is cancelled or somebody else's."""

    def __init__(self, database: Database, attempt: Attempt) -> None:
        self._database = database
        self._attempt = attempt
        self._steps: list[StepReport] = []
        self._said: list[_Said] = []
        self._written = time.monotonic()
        self._took = 0.0  # seconds, of what was written last
        self._away_until = self._written
        self._page = page_of_watcher()

    def say(self, message: str, level: job_moves.Level = "info") -> None:
        """Write an event that people read, now or, while the database is away, with what is written next."""
        self._said.append(_Said(message, level, secrets.token_hex(8)))
        self.write_if_possible()

    def goes_on_from(self, step: int) -> None:
        """Tell whoever watches that so many steps have been taken."""
        self._page.step = step

    def evaluated(self, evaluation: Evaluation) -> None:
        """Keep the evaluation with the job, and tell its main metric."""

        def write() -> None:
            with self._database.session_across_teams() as session:
                attempts.record_evaluation(
                    session, self._attempt.job_id, self._attempt.number, evaluation.model_dump(), evaluation.summary
                )

        patiently(write)

    def resolved(self, hyperparameters: dict[str, Any]) -> None:
        """Write what hyperparameters that were `auto` have become."""

        def write() -> None:
            with self._database.session_across_teams() as session:
                attempts.resolved(session, self._attempt.job_id, self._attempt.number, hyperparameters)

        patiently(write)

    def step(self, report: StepReport) -> None:
        """Keep what a step measured, and write what was kept if it is time to."""
        self._page.step = report.step
        self._steps.append(report)
        pause = pause_after(self._took, share=_WRITING_SHARE, least=_WRITE_EVERY_SECONDS, most=_RAREST_SECONDS)
        next_write = self._written + pause
        is_time = time.monotonic() >= max(next_write, self._away_until)
        if is_time or report.step == report.total_steps:
            self.write_if_possible()

    @property
    def unwritten(self) -> Sequence[StepReport]:
        """What is still kept."""
        return tuple(self._steps)

    def take_over(self, steps: Sequence[StepReport]) -> None:
        """Keep what an earlier attempt could not write."""
        self._steps[:0] = steps

    def flush(self) -> None:
        """Write what is still kept, waiting for a database that is away."""
        patiently(self._write)

    def write_if_possible(self) -> None:
        """Write what is still kept, or go on keeping it while the database is away."""
        try:
            self._write()
        except OperationalError as error:
            # Training goes on while the database is away; the lease decides for how long.
            log.warning("news_kept_back", steps=len(self._steps), said=len(self._said), reason=type(error).__name__)
            self._away_until = time.monotonic() + _TRY_AGAIN_SECONDS

    def _write(self) -> None:
        """Write the kept steps with one event that sums them up, and what was said."""
        began = time.monotonic()
        if self._steps:
            self._write_steps()
        while self._said:
            said = self._said[0]
            with self._database.session_across_teams() as session:
                attempts.record(
                    session, self._attempt.job_id, self._attempt.number, said.message, level=said.level, key=said.key
                )
            del self._said[0]
        self._written = time.monotonic()
        self._took = self._written - began

    def _write_steps(self) -> None:
        news = _news(self._steps)
        with self._database.session_across_teams() as session:
            attempts.record_steps(
                session, self._attempt.job_id, self._attempt.number, [_metrics(step) for step in self._steps],
                progress=_progress(news), news=news,
                message=f"Step {news['step']}/{news['total_steps']}: loss={news['loss']:.4f}",
            )  # fmt: skip
        self._steps.clear()


def _metrics(report: StepReport) -> dict[str, Any]:
    left_out = {"total_steps", "trained_tokens"}
    return {name: value for name, value in asdict(report).items() if name not in left_out}


def _news(steps: list[StepReport]) -> dict[str, Any]:
    """The last step, with the rates of all steps since the last news."""
    last = steps[-1]
    seconds = sum(step.seconds for step in steps)
    rows = sum(step.pairs_per_second * step.seconds for step in steps)
    return {
        "step": last.step,
        "total_steps": last.total_steps,
        "loss": last.loss,
        "learning_rate": last.learning_rate,
        "pairs_per_second": rows / seconds,
        "seconds_left": (last.total_steps - last.step) * seconds / len(steps),
    }


def _progress(news: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in news.items() if name != "learning_rate"}
