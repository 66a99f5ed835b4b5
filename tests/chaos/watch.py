"""What is looked at all the time: how far each job is, and whether a process has outlived its parent."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import psycopg

from api_schemas.jobs import ENDED
from tests.chaos.fleet import Fleet
from tests.chaos.ledger import Ledger
from tests.chaos.pace import Pace
from tests.chaos.servers import ServerAwayError
from tests.chaos.table import Process

#: A process whose parent is gone may take so long to end.
ORPHAN_SECONDS = 2.0
#: A training that starts imports and reads before there is anything to see; on two busy cores that takes a while.
STARTING_SECONDS = 15.0
#: A worker that is started again takes so long to ask for its first job.
WORKER_STARTS_SECONDS = 3.0
_LOOK_EVERY_SECONDS = 0.25


@dataclass(frozen=True)
class Sight:
    """How a job stood at a moment (Unix time)."""

    at: float
    state: str
    attempt: int
    step: int
    seq: int


class Watch:
    """Looks four times a second, from a thread of its own."""

    def __init__(self, fleet: Fleet, ledger: Ledger, pace: Pace) -> None:
        self._fleet = fleet
        self._pace = pace
        self._ledger = ledger
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._lock = threading.Lock()
        self._excuses = 0
        self._excused: dict[str, int] = {}
        self._still: dict[str, float] = {}  # seconds without progress and without an excuse
        self._alone: dict[tuple[int, int], float] = {}
        self._somebody_free = False
        self._busy: list[tuple[float, float]] = []  # Unix time, and seconds until then, of looks at which all were busy
        self.sights: dict[str, list[Sight]] = {}
        self.hung: dict[str, str] = {}
        self.orphans: dict[tuple[int, int], str] = {}

    @property
    def hung_after_seconds(self) -> float:
        """Three leases, and what a training needs to start."""
        return 3 * self._fleet.shape.lease_seconds + self._pace.stretch(STARTING_SECONDS)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    @contextmanager
    def excusing(self, job_id: str | None = None) -> Iterator[None]:
        """While a fault lasts that keeps a job, or without an id all jobs, from making progress."""
        with self._lock:
            self._count(job_id, +1)
        try:
            yield
        finally:
            with self._lock:
                self._count(job_id, -1)

    def ran_again(self, job_id: str, after_attempt: int) -> float | None:
        """When the job was first seen running under a later attempt (Unix time)."""
        seen = self.sights.get(job_id, ())
        return next((sight.at for sight in seen if sight.state == "running" and sight.attempt > after_attempt), None)

    def all_busy(self, since: float, until: float) -> float:
        """For how many seconds between two moments (Unix time) no worker was there that could have taken a job."""
        return sum(passed for at, passed in self._busy if since < at <= until)

    def _count(self, job_id: str | None, change: int) -> None:
        if job_id is None:
            self._excuses += change
        else:
            self._excused[job_id] = self._excused.get(job_id, 0) + change

    def _run(self) -> None:
        before = time.monotonic()
        while not self._stop.wait(_LOOK_EVERY_SECONDS):
            now = time.monotonic()
            table = self._fleet.table.look()
            self._look_for_orphans(table, now)
            self._look_at_workers(table, now - before)
            with suppress(psycopg.OperationalError, ServerAwayError):  # nobody makes progress, and nobody is blamed
                self._look_at_jobs(now - before)
            before = now

    def _look_at_jobs(self, passed: float) -> None:
        for row in self._ledger.rows("SELECT id, state, attempt, progress, last_seq FROM jobs"):
            sight = _sight(row)
            seen = self.sights.setdefault(row["id"], [])
            if not seen or _differs(seen[-1], sight):
                seen.append(sight)
                self._still[row["id"]] = 0.0
            elif not self._may_stand_still(row["id"], sight.state):
                self._still[row["id"]] += passed
                if self._still[row["id"]] > self.hung_after_seconds:
                    self.hung.setdefault(row["id"], f"{sight.state}, attempt {sight.attempt}, step {sight.step}")

    def _may_stand_still(self, job_id: str, state: str) -> bool:
        if state in ENDED or state == "paused" or (state == "queued" and not self._somebody_free):
            return True
        with self._lock:
            return bool(self._excuses or self._excused.get(job_id))

    def _look_at_workers(self, table: dict[int, Process], passed: float) -> None:
        parents = {process.parent for process in table.values()}
        starting = self._pace.stretch(WORKER_STARTS_SECONDS)

        def is_free(name: str) -> bool:
            member = self._fleet.members[name]
            process = table.get(member.pid) if member.process is not None else None
            waits = process is not None and process.state not in "Tt" and process.pid not in parents
            return waits and time.monotonic() - member.began > starting

        self._somebody_free = any(map(is_free, self._fleet.named("worker")))
        if not self._somebody_free:
            self._busy.append((time.time(), passed))

    def _look_for_orphans(self, table: dict[int, Process], now: float) -> None:
        members = {member.pid for member in self._fleet.members.values() if member.process is not None}
        for process in table.values():
            key = (process.pid, process.started)
            if process.pid in members or _has_ancestor(table, process, members) or process.state in "Tt":
                self._alone.pop(key, None)
            elif now - self._alone.setdefault(key, now) > self._pace.stretch(ORPHAN_SECONDS):
                self.orphans[key] = process.command


def _sight(row: dict[str, Any]) -> Sight:
    step = (row["progress"] or {}).get("step", 0)
    return Sight(time.time(), row["state"], row["attempt"], step, row["last_seq"])


def _differs(one: Sight, other: Sight) -> bool:
    return (one.state, one.attempt, one.step, one.seq) != (other.state, other.attempt, other.step, other.seq)


def _has_ancestor(table: dict[int, Process], process: Process, members: set[int]) -> bool:
    while process.parent in table:
        process = table[process.parent]
        if process.pid in members:
            return True
    return False
