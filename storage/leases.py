"""Leases: who works on a running job, and until when unless it is heard of again.

All times are PostgreSQL's. A lease is a row of its own, apart from the job's, so that whoever holds a lock on the job
can't keep its worker from renewing.
"""

from typing import Any

from sqlalchemy import ColumnElement, Double, cast, delete, extract, func, select, true
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from storage.tables import Job, Lease

#: How long a worker may be silent before its job is given to another, if the settings say nothing else.
SECONDS = 45.0
_NOW = func.clock_timestamp()


class StaleAttempt(Exception):  # noqa: N818 — it is a state of affairs, not somebody's error
    """The attempt is no longer the one that runs: the job was cancelled, or given to another worker."""


def take(session: Session, row: Job, worker_id: str, seconds: float) -> None:
    """Give the lease of a job to a worker. Whoever calls holds the job's row lock."""
    values = {
        "team_id": row.team_id, "attempt": row.attempt, "worker_id": worker_id, "seconds": seconds, "started_at": _NOW,
        "expires_at": end(seconds),
    }  # fmt: skip
    taken = insert(Lease).values(job_id=row.id, **values)
    session.execute(taken.on_conflict_do_update(index_elements=[Lease.job_id], set_=values))


def release(session: Session, job_id: str) -> float:
    """End a job's lease, if it has one. Returns how long its attempt ran, in seconds: at most up to the lease's end."""
    ran = in_seconds(func.least(_NOW, Lease.expires_at) - Lease.started_at)
    return session.scalar(delete(Lease).where(Lease.job_id == job_id).returning(func.greatest(ran, 0.0))) or 0.0


def is_over(session: Session, row: Job) -> bool:
    """Whether nobody holds the lease of a running job; until the transaction ends, nobody can renew it then.

    Whoever calls holds the job's row lock.
    """
    over = session.scalar(select(has_ended()).where(Lease.job_id == row.id).with_for_update())
    if over is None:  # taken by an older worker
        over = session.scalar(select(older_has_ended()).where(Job.id == row.id))
    return bool(over)


def has_ended() -> ColumnElement[bool]:
    """Whether a lease has ended. A server that was away gives its holder as long again to be heard of."""
    return func.greatest(Lease.expires_at, func.pg_postmaster_start_time() + _interval(Lease.seconds)) < _NOW


def older_has_ended() -> ColumnElement[bool]:
    """Whether a running job that has no lease of its own has none by its row either."""
    return func.coalesce(Job.lease_expires_at < _NOW, true())


def end(seconds: Any) -> ColumnElement[Any]:
    """When a lease ends that is taken or renewed now."""
    return _NOW + _interval(seconds)


def in_seconds(interval: ColumnElement[Any]) -> ColumnElement[float]:
    """An interval as a number."""
    return cast(extract("epoch", interval), Double)


def _interval(seconds: Any) -> ColumnElement[Any]:
    return func.make_interval(0, 0, 0, 0, 0, 0, seconds)
