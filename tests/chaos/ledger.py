"""What PostgreSQL holds, seen through a role that may only read, past every proxy."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import psycopg
from psycopg.rows import dict_row

from tests.chaos.servers import JUDGE, Postgres

# The event of a move to the next attempt has that attempt's number, and is committed with it.
_LATE_STEPS = """
    SELECT job_metrics.attempt, step FROM job_metrics JOIN jobs ON jobs.id = job_id WHERE job_id = %s AND (
        pg_xact_commit_timestamp(job_metrics.xmin) > jobs.finished_at
        OR pg_xact_commit_timestamp(job_metrics.xmin) > (
            SELECT min(pg_xact_commit_timestamp(job_events.xmin)) FROM job_events
            WHERE job_events.job_id = job_metrics.job_id AND job_events.attempt > job_metrics.attempt
        )
    ) ORDER BY job_metrics.attempt, step
"""
# The end's own event is written with it, in either order.
_LATE_EVENTS = """
    SELECT message FROM job_events JOIN jobs ON jobs.id = job_id
    WHERE job_id = %s AND job_events.created_at > jobs.finished_at + interval '1 second' ORDER BY seq
"""


class Ledger:
    """Reads rows, on one connection that threads share and that is made again when the server was away.

    Raises OperationalError when the server has been away for `patience` seconds.
    """

    def __init__(self, postgres: Postgres, *, patience: float = 0.0) -> None:
        self._postgres = postgres
        self._patience = patience
        self._lock = threading.Lock()
        self._connection: psycopg.Connection[dict[str, Any]] | None = None

    def rows(self, query: str, arguments: Sequence[Any] = ()) -> list[dict[str, Any]]:
        deadline = time.monotonic() + self._patience
        while True:
            try:
                with self._lock:
                    return self._rows(query, arguments)
            except psycopg.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    def _rows(self, query: str, arguments: Sequence[Any]) -> list[dict[str, Any]]:
        if self._connection is None:
            self._connection = psycopg.connect(
                self._postgres.url.replace("postgres@", f"{JUDGE}@", 1), row_factory=dict_row, autocommit=True,
                connect_timeout=2, options="-c statement_timeout=5000",
            )  # fmt: skip
        try:
            return self._connection.execute(query, arguments).fetchall()  # type: ignore[call-overload,no-any-return]
        except psycopg.OperationalError:
            self._connection.close()
            self._connection = None
            raise

    def job(self, job_id: str) -> dict[str, Any] | None:
        return next(iter(self.rows("SELECT * FROM jobs WHERE id = %s", [job_id])), None)

    def jobs(self) -> list[dict[str, Any]]:
        return self.rows("SELECT * FROM jobs ORDER BY created_at")

    def events(self, job_id: str) -> list[dict[str, Any]]:
        return self.rows("SELECT * FROM job_events WHERE job_id = %s ORDER BY seq", [job_id])

    def models(self) -> list[dict[str, Any]]:
        return self.rows("SELECT * FROM models WHERE deleted_at IS NULL")

    def late_steps(self, job_id: str) -> list[tuple[int, int]]:
        """(attempt, step) that were committed after the attempt, or the job, was over."""
        return [(row["attempt"], row["step"]) for row in self.rows(_LATE_STEPS, [job_id])]

    def late_events(self, job_id: str) -> list[str]:
        """What was said of a job that had ended."""
        return [row["message"] for row in self.rows(_LATE_EVENTS, [job_id])]

    def first_and_last_steps(self, job_id: str) -> dict[int, tuple[int, int]]:
        """By attempt: the first and the last step that it measured."""
        found = self.rows(
            "SELECT attempt, min(step) AS first, max(step) AS last FROM job_metrics WHERE job_id = %s "
            "GROUP BY attempt ORDER BY attempt",
            [job_id],
        )
        return {row["attempt"]: (row["first"], row["last"]) for row in found}
