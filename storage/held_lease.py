"""A lease as its holder keeps it: on a connection of its own."""

from typing import Any, NamedTuple

from sqlalchemy import Connection, select, update
from sqlalchemy.exc import OperationalError

from storage import leases, limits
from storage.database import Database
from storage.leases import StaleAttempt
from storage.tables import Job, Lease


class Orders(NamedTuple):
    """What a worker is told about the job that it works on."""

    pause: bool = False
    overdue: bool = False  # it has taken longer than it may


class HeldLease:
    """A lease on a connection that answers soon or is given up. One thread uses it.

    It is made before the lease is taken, whose time would else go by while it connects. After
    sqlalchemy.exc.OperationalError the next call connects anew, if that is needed.
    """

    def __init__(self, database: Database, *, answer_seconds: float) -> None:
        """Raises OperationalError."""
        self._database = database
        self._answer_seconds = answer_seconds
        self._connection: Connection | None = self._connect()
        self._attempt = ("", 0)

    def hold(self, job_id: str, attempt: int, worker_id: str) -> None:
        """Say which lease it is that was taken."""
        self._attempt = (job_id, attempt)
        self._lease = (Lease.job_id == job_id, Lease.attempt == attempt, Lease.worker_id == worker_id)
        self._running = (Job.id == job_id, Job.state == "running", Job.attempt == attempt)

    def renew(self) -> None:
        """Prolong the lease, from now on. Raises StaleAttempt, OperationalError."""
        until = leases.end(Lease.seconds)
        self._only(update(Lease).where(*self._lease).values(expires_at=until).returning(Lease.job_id))

    def orders(self) -> Orders:
        """What has been asked of the job meanwhile. Raises StaleAttempt, OperationalError.

        Not in the same statement as the renewal, which must not wait for whoever has locked the jobs.
        """
        told = select(Job.pause_asked, limits.are_exceeded()).select_from(Job).join(Lease, Lease.job_id == Job.id)
        return Orders(*self._only(told.where(*self._running)))

    def close(self) -> None:
        """Close the connection. The lease stays until it is released, or ends."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connect(self) -> Connection:
        return self._database.connect_alone(answer_seconds=self._answer_seconds)

    def _only(self, statement: Any) -> Any:
        """The one row that the statement gives. Raises StaleAttempt if there is none."""
        try:
            if self._connection is None:
                self._connection = self._connect()
            found = self._connection.execute(statement).first()
        except OperationalError:
            if self._connection is not None and self._connection.invalidated:
                self.close()
            raise
        if found is None:
            raise StaleAttempt(*self._attempt)
        return found
