"""The only moves a job's state may make.

    validating_files → queued → running → succeeded | failed | cancelled
           ↕              ↕        ↕
                        paused

A move is a compare-and-set on (state, attempt) and writes its event in the same transaction: whoever moves a job holds
its row's lock. Who may ask for which move, and when, is said by the modules that call this one.
"""

from typing import Any, Literal

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from api_schemas.errors import LikenessError
from api_schemas.jobs import ENDED
from storage import queue
from storage.tables import Job, JobEvent

#: How often a job's worker may die before the job is failed.
MOST_CRASHES = 3

Level = Literal["info", "warn", "error"]
_NOW = func.clock_timestamp()
#: How a message ends that tells of another attempt.
GOES_ON = "goes on from its last checkpoint"


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
    row.state = "queued"
    row.attempt = (row.attempt or 0) + 1
    row.worker_id = None
    row.lease_expires_at = None
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
    row.state = "paused"
    row.in_turn = False
    row.pause_asked = False
    row.worker_id = None
    row.lease_expires_at = None
    add_event(session, row, level, f"{message}. POST /v1/fine_tuning/jobs/{row.id}/resume goes on with it")


def crashed(session: Session, row: Job, what: str) -> None:
    row.crashes += 1
    if row.crashes >= MOST_CRASHES:
        fail(
            session, row, "worker_lost",
            f"{what}. The job is not tried again: that was crash {row.crashes} of the {MOST_CRASHES} that a job may "
            "have. The worker's log says more; often memory ran out: try a smaller micro_batch_size or max_seq_length.",
        )  # fmt: skip
    else:
        requeue(session, row, what)


def fail(session: Session, row: Job, code: str, message: str) -> None:
    row.error = LikenessError(code, message).body()["error"]
    end(session, row, "failed", "error", message)


def end(session: Session, row: Job, state: str, level: Level, message: str) -> None:
    assert state in ENDED  # noqa: S101 — a slip here would make a terminal state out of a typing error
    row.state = state
    row.finished_at = _NOW
    row.lease_expires_at = None
    add_event(session, row, level, message)


def add_event(session: Session, row: Job, level: Level, message: str, *, metrics: dict[str, Any] | None = None) -> None:
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
        )
    )
