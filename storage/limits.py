"""How long a job may take: `max_runtime_seconds` of its attempts together, and a time by which it must have ended."""

from collections.abc import Sequence

from sqlalchemy import ColumnElement, false, func, or_, select
from sqlalchemy.orm import Session

from api_schemas.jobs import ENDED, UNENDED
from storage import job_moves, leases
from storage.tables import Job, Lease

_NOW = func.clock_timestamp()


def are_exceeded() -> ColumnElement[bool]:
    """Whether a job that has not ended has taken longer than it may; of a job and its lease, if it has one."""
    return or_(_past_deadline(), _ran_too_long())


def overdue(session: Session) -> Sequence[str]:
    """Ids of the jobs that have taken longer than they may."""
    limited = or_(Job.deadline_at.is_not(None), Job.max_runtime_seconds.is_not(None))
    jobs = select(Job.id).outerjoin(Lease, Lease.job_id == Job.id)
    return session.scalars(jobs.where(Job.state.in_(UNENDED), limited, are_exceeded())).all()


def end(session: Session, job_id: str) -> bool:
    """Fail a job that has taken longer than it may, whatever it is doing. Returns whether it was one."""
    row = job_moves.locked(session, job_id)
    if row is None or row.state in ENDED:
        return False
    past_deadline, ran_too_long = session.execute(
        select(_past_deadline(), _ran_too_long())
        .select_from(Job)
        .outerjoin(Lease, Lease.job_id == Job.id)
        .where(Job.id == job_id)
    ).one()
    if ran_too_long:
        job_moves.fail(
            session, row, "max_runtime_exceeded",
            f"The job has run for {row.max_runtime_seconds} s, which is all that its max_runtime_seconds allows. "
            "Create it again with more, or with fewer steps.",
        )  # fmt: skip
    elif past_deadline:
        job_moves.fail(
            session, row, "deadline_exceeded",
            f"The job was {row.state} when its deadline passed. Create it again with a later one.",
        )  # fmt: skip
    return bool(past_deadline or ran_too_long)


def _past_deadline() -> ColumnElement[bool]:
    return func.coalesce(Job.deadline_at < _NOW, false())


def _ran_too_long() -> ColumnElement[bool]:
    """Only while it runs: an attempt that has ended is added up, and the job may wait as long as it has to."""
    running = leases.in_seconds(_NOW - Lease.started_at)
    return func.coalesce(Job.ran_seconds + running > Job.max_runtime_seconds, false())
