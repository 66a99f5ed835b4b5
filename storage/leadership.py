"""Who reconciles: one process at a time, elected by an advisory lock, for a term that it renews.

The lock says who leads, the term until when. A lock alone would be held for as long as its connection stands: by a
process that is stopped, or on a host that is gone, until somebody notices. So whoever finds the newest term over ends
the connection that holds the lock, and takes it.
"""

import os
import socket
from typing import Any

import structlog
from sqlalchemy import Connection, text
from sqlalchemy.exc import OperationalError, ProgrammingError

from storage.database import Database

log = structlog.get_logger("likeness.leadership")

#: How long a leader may be silent before another leads.
TERM_SECONDS = 10.0
# Any number will do, as long as every version of the code agrees on it.
_LEADER_LOCK = 7_310_041_212
_ANSWER_SECONDS = 2.0
_TERMS_KEPT = 1000

_TRY_LOCK = text("SELECT pg_try_advisory_lock(:lock)")
_BEGIN_TERM = text(
    "INSERT INTO leader_terms (term, holder, ends_at) "
    "SELECT coalesce(max(term), 0) + 1, :holder, clock_timestamp() + make_interval(secs => :seconds) FROM leader_terms "
    "RETURNING term"
)
# Also one that is over: as long as there is none after it, nobody else has led.
_RENEW_TERM = text(
    "UPDATE leader_terms SET ends_at = clock_timestamp() + make_interval(secs => :seconds) "
    "WHERE term = :term AND term = (SELECT max(term) FROM leader_terms) RETURNING term"
)
_FORGET_TERMS = text("DELETE FROM leader_terms WHERE term <= :term RETURNING term")
_TERM_IS_OVER = text("SELECT coalesce(max(ends_at) < clock_timestamp(), true) FROM leader_terms")
# Not one that has come only now, and is about to begin its term. The server lists the lock's number in two halves.
_END_LEADER = text(
    "SELECT pg_terminate_backend(pid, 1000) FROM pg_locks JOIN pg_stat_activity USING (pid) "
    "WHERE locktype = 'advisory' AND granted AND objsubid = 1 AND datname = current_database() "
    "AND database = datid AND (classid::bigint << 32) + objid::bigint = :lock "
    "AND backend_start < clock_timestamp() - make_interval(secs => :seconds)"
)


class Leadership:
    """The lock and the term, on a connection outside any pool: a pool would close it, and lose the lock silently."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._holder = f"{socket.gethostname()}-{os.getpid()}"
        self._connection: Connection | None = None
        self._term = 0

    def is_mine(self) -> bool:
        """Whether this process leads, asked of the very connection that holds the lock; then its term begins anew.

        Raises OperationalError when that connection is gone; then somebody else may lead.
        """
        try:
            if self._connection is None:
                return self._try_to_lead()
            if self._answer(_RENEW_TERM, term=self._term, seconds=TERM_SECONDS):
                return True
            self.give_up()
            return False
        except OperationalError:
            self.give_up()
            raise

    def give_up(self) -> None:
        """Close the connection, and with it the lock."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _try_to_lead(self) -> bool:
        self._connection = self._database.connect_alone(answer_seconds=_ANSWER_SECONDS)
        if self._takes_lock() or (self._ends_silent_leader() and self._takes_lock()):
            self._term = self._answer(_BEGIN_TERM, holder=self._holder, seconds=TERM_SECONDS)
            self._answer(_FORGET_TERMS, term=self._term - _TERMS_KEPT)
            log.info("leading", term=self._term)
            return True
        self.give_up()
        return False

    def _takes_lock(self) -> bool:
        return bool(self._answer(_TRY_LOCK, lock=_LEADER_LOCK))

    def _ends_silent_leader(self) -> bool:
        """End the connection of a leader whose term is over. Returns whether there was one."""
        if not self._answer(_TERM_IS_OVER):
            return False
        try:
            ended = bool(self._answer(_END_LEADER, lock=_LEADER_LOCK, seconds=TERM_SECONDS))
        except ProgrammingError as error:  # it is another role's connection
            log.error("silent_leader_left", reason=str(error.orig))
            return False
        if ended:
            log.warning("silent_leader_ended")
        return ended

    def _answer(self, statement: Any, **values: Any) -> Any:
        assert self._connection is not None  # noqa: S101 (whoever asks has connected)
        return self._connection.scalar(statement, values)
