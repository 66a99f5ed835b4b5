"""The right to work on a job: held by one worker at a time, renewed while it lives."""

import time

import structlog
from sqlalchemy.exc import OperationalError

from storage import attempts
from storage.database import Database

log = structlog.get_logger("likeness.lease")

RENEW_EVERY_SECONDS = 2.0
# The holder gives up this long before the lease ends, so that it has stopped writing when another begins.
_MARGIN_SECONDS = 10.0


class LeaseLostError(Exception):
    """The job isn't this worker's any more: it was cancelled or given away, or PostgreSQL has been away too long."""


class Lease:
    """A lease that was taken with `storage.attempts.start`. One thread uses it.

    Its end is judged by the monotonic clock, from the moment a renewal was *sent*: the answer's delay and jumps of
    the wall clock can only make it end early.
    """

    def __init__(self, database: Database, job_id: str, attempt: int, worker_id: str) -> None:
        self._database = database
        self._key = (job_id, attempt, worker_id)
        self._renewed = time.monotonic()

    def keep(self) -> bool:
        """Renew the lease if it is time to. Returns whether the job is known to have been asked to pause.

        Raises LeaseLostError.
        """
        now = time.monotonic()
        pause_asked = False
        if now - self._renewed < RENEW_EVERY_SECONDS:
            return pause_asked
        try:
            with self._database.session_across_teams() as session:
                pause_asked = attempts.renew(session, *self._key)
        except attempts.StaleAttempt as error:
            raise LeaseLostError("the job has ended, was cancelled, or was given to another worker") from error
        except OperationalError as error:
            log.warning("lease_not_renewed", job=self._key[0], attempt=self._key[1], reason=type(error).__name__)
            if time.monotonic() - self._renewed > attempts.LEASE_SECONDS - _MARGIN_SECONDS:
                raise LeaseLostError("PostgreSQL has been away for most of a lease") from error
        else:
            self._renewed = now
        return pause_asked
