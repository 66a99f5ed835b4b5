"""An attempt at a job: a lease that a worker takes, renews, and writes under.

Whoever writes on behalf of an attempt names it; when it is no longer the job's running attempt, the write is refused
with StaleAttempt.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from api_schemas.methods import Method
from storage import job_moves, leases, models
from storage.job_moves import Death, Level
from storage.leases import StaleAttempt as StaleAttempt
from storage.tables import Job, JobMetrics, Lease, Model

_NOW = func.clock_timestamp()


def start(
    session: Session, job_id: str, attempt: int, worker_id: str, *, lease_seconds: float = leases.SECONDS
) -> Job | None:
    """Take the lease of a queued attempt. None when it is taken, cancelled, or of an old delivery."""
    row = job_moves.locked(session, job_id)
    if row is None or row.state != "queued" or row.attempt != attempt:
        return None
    row.state = "running"
    row.worker_id = worker_id
    leases.take(session, row, worker_id, lease_seconds)
    row.started_at = func.coalesce(Job.started_at, _NOW)
    again = f", attempt {attempt}" if attempt > 1 else ""
    job_moves.add_event(session, row, "info", f"Training started{again}")
    session.flush()
    session.refresh(row)
    return row


def running(session: Session, job_id: str, attempt: int) -> Job:
    """The job, locked, while `attempt` is its running attempt. Raises StaleAttempt."""
    row = job_moves.locked(session, job_id)
    if row is None or row.state != "running" or row.attempt != attempt:
        raise StaleAttempt(job_id, attempt)
    return row


def record(
    session: Session, job_id: str, attempt: int, message: str, *, level: Level = "info", key: str | None = None
) -> None:
    """Write an event of the running attempt. Raises StaleAttempt.

    key: where it is given, writing the same again changes nothing: the answer to the first commit may have been lost.
    """
    row = running(session, job_id, attempt)
    if not job_moves.is_told(session, row, key):
        job_moves.add_event(session, row, level, message, key=key)


def resolved(session: Session, job_id: str, attempt: int, hyperparameters: Mapping[str, Any]) -> None:
    """Echo what was still `auto` when the attempt began, by name. Raises StaleAttempt."""
    row = running(session, job_id, attempt)
    contrastive = Method(**row.method).contrastive
    echoed = contrastive.hyperparameters.model_copy(update=dict(hyperparameters))
    row.method = Method(contrastive=contrastive.model_copy(update={"hyperparameters": echoed})).stored()


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
    """Give the job back, through no fault of its own: to the queue, or paused if asked. Raises StaleAttempt."""
    row = running(session, job_id, attempt)
    if row.pause_asked:
        job_moves.pause(session, row, "info", "Job paused")
    else:
        row.preemptions += 1
        job_moves.requeue(session, row, why)


def pause_running(session: Session, job_id: str, attempt: int, message: str) -> None:
    """End the attempt, and pause the job until somebody has done what the message asks for. Raises StaleAttempt."""
    job_moves.pause(session, running(session, job_id, attempt), "warn", message)


def died(session: Session, job_id: str, attempt: int, death: Death) -> None:
    """The attempt's process has died: try again, or fail the job with what is known. Raises StaleAttempt."""
    job_moves.died(session, running(session, job_id, attempt), death)


def disk_failed(session: Session, job_id: str, attempt: int, what: str) -> None:
    """The attempt met a disk that fails: try again, which counts as a death, or pause where that would be the last.

    Failing the job would remove its checkpoints. Raises StaleAttempt.
    """
    row = running(session, job_id, attempt)
    if row.deaths_in_place + 1 < job_moves.MOST_CRASHES:
        # Also twice after one step: it is the disk's fault, not the job's.
        job_moves.died(session, row, Death(what, after_step=_last_step(row), from_outside=True))
    else:
        remedy = "See to the disk, then let `likeness verify` look for what it has damaged"
        job_moves.pause(session, row, "error", f"{what}, again and again; the last checkpoint is kept. {remedy}")


def abandoned(session: Session, worker_id: str, death: Death | None) -> str | None:
    """The worker's process that saw to its job has ended without a word; None: it was told to. Returns the job's id."""
    found = session.execute(select(Lease.job_id, Lease.attempt).where(Lease.worker_id == worker_id)).first()
    if found is None:
        return None
    try:
        row = running(session, found.job_id, found.attempt)
        if death is None:
            requeue(session, row.id, row.attempt, "The worker is shutting down")
        else:
            job_moves.died(session, row, replace(death, after_step=_last_step(row)))
    except StaleAttempt:  # by now
        return None
    return row.id


def expired(session: Session) -> Sequence[tuple[str, int]]:
    """(job id, attempt) of every job whose lease has ended."""
    over = func.coalesce(leases.has_ended(), leases.older_has_ended())
    rows = session.execute(
        select(Job.id, Job.attempt).outerjoin(Lease, Lease.job_id == Job.id).where(Job.state == "running", over)
    )
    return [(row.id, row.attempt) for row in rows]


def rescue(session: Session, job_id: str, attempt: int) -> bool:
    """Give a job whose lease has ended to another worker, or fail it. Returns whether its lease has ended still.

    A job that somebody has locked is left for the next time.
    """
    row = session.scalar(
        select(Job)
        .where(Job.id == job_id, Job.state == "running", Job.attempt == attempt)
        .with_for_update(skip_locked=True)
        .execution_options(populate_existing=True)
    )
    if row is None or not leases.is_over(session, row):
        return False
    job_moves.died(session, row, Death(f"The worker {row.worker_id} fell silent", after_step=_last_step(row)))
    return True


def _last_step(row: Job) -> int | None:
    """The step that was told last, some moments ago."""
    return (row.progress or {}).get("step")
