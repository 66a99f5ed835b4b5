"""The only moves a job's state may make.

    validating_files → queued → running → succeeded | failed | cancelled
           ↕              ↕        ↕
                        paused

A move is a compare-and-set on (state, attempt) and writes its event in the same transaction: whoever moves a job holds
its row's lock. Who may ask for which move, and when, is said by the modules that call this one.
"""

from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from api_schemas.errors import LikenessError
from api_schemas.jobs import ENDED
from storage import leases, queue
from storage.tables import Job, JobEvent

#: How often a job's attempts may die without getting further than those before, and then the job is failed.
MOST_CRASHES = 3

Level = Literal["info", "warn", "error"]
_NOW = func.clock_timestamp()
_EVENTS_LOOKED_AT = 50
#: How a message ends that tells of another attempt.
GOES_ON = "goes on from its last checkpoint"


@dataclass(frozen=True)
class Death:
    """How the process of an attempt, or its worker, has died."""

    what: str  # a sentence without its end: who died, and of what
    after_step: int | None = None  # how many steps were taken; None before the first
    out_of_memory: bool = False  # the kernel killed it for lack of memory
    from_outside: bool = False  # somebody killed it, which says nothing of the job

    def __str__(self) -> str:
        return f"{self.what} {f'after step {self.after_step}' if self.after_step else 'before a step was taken'}"


def locked(session: Session, job_id: str) -> Job | None:
    return session.scalar(
        select(Job).where(Job.id == job_id).with_for_update().execution_options(populate_existing=True)
    )


def locked_unless(session: Session, job_id: str, *states: str) -> Job:
    """The job. Raises LikenessError `not_found`, or `job_already_ended` for a job that ended in one of the states."""
    row = locked(session, job_id)
    if row is None:
        raise LikenessError("not_found", f"There is no fine-tuning job {job_id!r}")
    if row.state in states:
        was = "was cancelled" if row.state == "cancelled" else f"has already {row.state}"
        raise LikenessError("job_already_ended", f"Job {job_id} {was}.", headers={"x-should-retry": "false"})
    return row


def next_attempt(session: Session, row: Job) -> None:
    _leave(session, row)
    row.state = "queued"
    row.attempt = (row.attempt or 0) + 1
    row.progress = None
    row.pause_asked = False
    row.evaluation = None
    queue.put(session, row.team_id, queue.TRAIN, [row.id, row.attempt])


def requeue(session: Session, row: Job, why: str) -> None:
    if row.pause_asked:
        pause(session, row, "warn", f"{why}; the job is paused, as was asked")
        return
    next_attempt(session, row)
    add_event(session, row, "warn", f"{why}; the job is queued again, and {GOES_ON}")


def pause(session: Session, row: Job, level: Level, message: str) -> None:
    _leave(session, row)
    row.state = "paused"
    row.in_turn = False
    row.pause_asked = False
    add_event(session, row, level, f"{message}. POST /v1/fine_tuning/jobs/{row.id}/resume goes on with it")


def died(session: Session, row: Job, death: Death) -> None:
    """Queue the job again, unless its attempts die at one place: then it fails, with what is known."""
    if death.out_of_memory:
        row.oom_kills += 1
    else:
        row.crashes += 1
    further = death.after_step is not None and death.after_step > (row.died_after_step or 0)
    again = death.after_step is not None and death.after_step == row.died_after_step and not death.from_outside
    row.deaths_in_place = 1 if further else row.deaths_in_place + 1
    if further:
        row.died_after_step = death.after_step
    if again or row.deaths_in_place >= MOST_CRASHES:
        fail(session, row, *_why_not_again(row, death, again=again))
    else:
        requeue(session, row, str(death))


def _why_not_again(row: Job, death: Death, *, again: bool) -> tuple[str, str]:
    """A code and a sentence for a job whose attempts die at one place."""
    if again:
        reason = "an attempt before has died after the same step, so the next one would too"
    else:
        reason = (
            f"that was death {row.deaths_in_place} of the {MOST_CRASHES} that a job may have without getting further"
        )
    told = f"{death}. The job is not tried again: {reason}. "
    smaller = "Try a smaller micro_batch_size or max_seq_length"
    if death.out_of_memory:
        return "out_of_memory", f"{told}{smaller}, or a worker with more memory."
    if again:
        return "poisoned_job", f"{told}The worker's log says more; look at the rows of the step after it."
    return "worker_lost", f"{told}The worker's log says more; often memory ran out: {smaller[0].lower()}{smaller[1:]}."


def fail(session: Session, row: Job, code: str, message: str) -> None:
    row.error = LikenessError(code, message).body()["error"]
    end(session, row, "failed", "error", message)


def end(session: Session, row: Job, state: str, level: Level, message: str) -> None:
    assert state in ENDED  # noqa: S101 — a slip here would make a terminal state out of a typing error
    worker = row.worker_id
    _leave(session, row)
    row.worker_id = worker
    row.state = state
    row.finished_at = _NOW
    add_event(session, row, level, message)


def _leave(session: Session, row: Job) -> None:
    """End the attempt's lease, if one runs, and add up how long it ran."""
    row.worker_id = None
    row.lease_expires_at = None
    row.ran_seconds = (row.ran_seconds or 0.0) + leases.release(session, row.id)


def is_told(session: Session, row: Job, key: str | None) -> bool:
    """Whether the event with this key is among the job's last; whoever writes twice does so at once."""
    last = select(JobEvent.key).where(JobEvent.job_id == row.id).order_by(JobEvent.seq.desc()).limit(_EVENTS_LOOKED_AT)
    return key is not None and key in session.scalars(last).all()


def add_event(
    session: Session,
    row: Job,
    level: Level,
    message: str,
    *,
    metrics: dict[str, Any] | None = None,
    key: str | None = None,
) -> None:
    # Whoever adds an event holds the job's row lock (or has just made the row), so numbers have no gaps.
    row.last_seq = (row.last_seq or 0) + 1
    session.add(
        JobEvent(
            job_id=row.id,
            seq=row.last_seq,
            team_id=row.team_id,
            attempt=row.attempt or 0,
            level=level,
            type="message" if metrics is None else "metrics",
            message=message,
            data=metrics,
            key=key,
        )
    )
