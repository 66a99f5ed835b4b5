"""An attempt at a job: a lease that a worker takes, renews, and writes under.

Whoever writes on behalf of an attempt names it; when it is no longer the job's running attempt, the write is refused
with StaleAttempt.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from api_schemas.jobs import Method
from storage import job_moves, models
from storage.job_moves import Level
from storage.tables import Job, JobMetrics, Model

#: How long a worker may be silent before its job is given to another.
LEASE_SECONDS = 45.0
_NOW = func.clock_timestamp()


class StaleAttempt(Exception):  # noqa: N818 — it is a state of affairs, not somebody's error
    """The attempt is no longer the one that runs: the job was cancelled, or given to another worker."""


def start(session: Session, job_id: str, attempt: int, worker_id: str) -> Job | None:
    """Take the lease of a queued attempt. None when it is taken, cancelled, or of an old delivery."""
    row = job_moves.locked(session, job_id)
    if row is None or row.state != "queued" or row.attempt != attempt:
        return None
    row.state = "running"
    row.worker_id = worker_id
    row.lease_expires_at = _lease_end()
    row.started_at = func.coalesce(Job.started_at, _NOW)
    again = f", attempt {attempt}" if attempt > 1 else ""
    job_moves.add_event(session, row, "info", f"Training started{again}")
    session.flush()
    session.refresh(row)
    return row


def renew(session: Session, job_id: str, attempt: int, worker_id: str) -> bool:
    """Prolong the lease. Returns whether the job was asked to pause. Raises StaleAttempt when the lease is lost."""
    renewed = session.execute(
        update(Job)
        .where(*_is_running(job_id, attempt), Job.worker_id == worker_id)
        .values(lease_expires_at=_lease_end())
        .returning(Job.pause_asked)
    ).first()
    if renewed is None:
        raise StaleAttempt(job_id, attempt)
    return bool(renewed.pause_asked)


def running(session: Session, job_id: str, attempt: int) -> Job:
    """The job, locked, while `attempt` is its running attempt. Raises StaleAttempt."""
    row = job_moves.locked(session, job_id)
    if row is None or row.state != "running" or row.attempt != attempt:
        raise StaleAttempt(job_id, attempt)
    return row


def record(session: Session, job_id: str, attempt: int, message: str, *, level: Level = "info") -> None:
    """Write an event of the running attempt. Raises StaleAttempt."""
    job_moves.add_event(session, running(session, job_id, attempt), level, message)


def resolved(session: Session, job_id: str, attempt: int, hyperparameters: Mapping[str, Any]) -> None:
    """Echo what was still `auto` when the attempt began, by name. Raises StaleAttempt."""
    row = running(session, job_id, attempt)
    contrastive = Method(**row.method).contrastive
    echoed = contrastive.hyperparameters.model_copy(update=dict(hyperparameters))
    row.method = Method(contrastive=contrastive.model_copy(update={"hyperparameters": echoed})).model_dump()


def record_steps(
    session: Session,
    job_id: str,
    attempt: int,
    steps: Sequence[dict[str, Any]],
    *,
    progress: dict[str, Any],
    message: str,
    news: dict[str, Any],
) -> None:
    """Write what steps measured, how far the job is, and one event that sums them up. Raises StaleAttempt.

    Writing the same steps again changes nothing: the answer to the first commit may have been lost.
    """
    row = running(session, job_id, attempt)
    values = [
        {"team_id": row.team_id, "job_id": job_id, "attempt": attempt, "step": step["step"], "values": step}
        for step in steps
    ]
    written = session.scalars(insert(JobMetrics).on_conflict_do_nothing().returning(JobMetrics.step), values)
    if written.first() is not None:
        row.progress = progress
        job_moves.add_event(session, row, "info", message, metrics=news)


def record_evaluation(session: Session, job_id: str, attempt: int, evaluation: dict[str, Any], message: str) -> None:
    """Keep what the API answers for the evaluation, and write an event that sums it up. Raises StaleAttempt.

    Writing the same again changes nothing: the answer to the first commit may have been lost.
    """
    row = running(session, job_id, attempt)
    if row.evaluation != evaluation:
        row.evaluation = evaluation
        job_moves.add_event(session, row, "info", message)


def succeed(
    session: Session,
    job_id: str,
    attempt: int,
    *,
    base_model: str,
    weights_sha256: str,
    dimension: int,
    max_seq_length: int | None,
    trained_tokens: int,
    method: dict[str, Any] | None = None,
) -> Model:
    """End the attempt well: the model's row and the job's end are one commit. Raises StaleAttempt.

    method: what a search has chosen, to be echoed. Not before the end: an attempt that goes on must search on.
    """
    row = running(session, job_id, attempt)
    row.method = method or row.method
    model = models.add(
        session,
        row,
        base_model=base_model,
        weights_sha256=weights_sha256,
        dimension=dimension,
        max_seq_length=max_seq_length,
    )
    row.fine_tuned_model = model.id
    row.trained_tokens = trained_tokens
    job_moves.end(session, row, "succeeded", "info", f"New fine-tuned model created: {model.id}")
    return model


def fail(session: Session, job_id: str, attempt: int, code: str, message: str) -> None:
    """End the attempt and the job, with a reason a person can act on. Raises StaleAttempt."""
    job_moves.fail(session, running(session, job_id, attempt), code, message)


def requeue(session: Session, job_id: str, attempt: int, why: str) -> None:
    """Give the job back: to the queue, because its worker is going away, or paused if asked. Raises StaleAttempt."""
    row = running(session, job_id, attempt)
    if row.pause_asked:
        job_moves.pause(session, row, "info", "Job paused")
    else:
        job_moves.requeue(session, row, why)


def pause_running(session: Session, job_id: str, attempt: int, message: str) -> None:
    """End the attempt, and pause the job until somebody has done what the message asks for. Raises StaleAttempt."""
    job_moves.pause(session, running(session, job_id, attempt), "warn", message)


def crashed(session: Session, job_id: str, attempt: int, what: str) -> None:
    """The attempt's process died: try again, or fail the job as `worker_lost`. Raises StaleAttempt."""
    job_moves.crashed(session, running(session, job_id, attempt), what)


def rescue_expired(session: Session) -> int:
    """Give every job whose lease ran out to another worker, or fail it. Returns how many there were."""
    expired = session.scalars(
        select(Job).where(Job.state == "running", Job.lease_expires_at < _NOW).with_for_update(skip_locked=True)
    ).all()
    for row in expired:
        job_moves.crashed(session, row, f"The worker {row.worker_id} fell silent")
    return len(expired)


def _is_running(job_id: str, attempt: int) -> tuple[ColumnElement[bool], ...]:
    return (Job.id == job_id, Job.state == "running", Job.attempt == attempt)


def _lease_end() -> ColumnElement[Any]:
    return _NOW + func.make_interval(0, 0, 0, 0, 0, 0, LEASE_SECONDS)
