"""A fleet under load and whoever watches it: all that a fault can reach."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import psycopg

from tests.chaos.fleet import Fleet, Member
from tests.chaos.history import History
from tests.chaos.ledger import Ledger
from tests.chaos.load import Load, Order
from tests.chaos.moments import Moments
from tests.chaos.pace import Pace
from tests.chaos.shots import until
from tests.chaos.specs import Spec
from tests.chaos.table import Process, family
from tests.chaos.tools import Tools
from tests.chaos.watch import Watch

_PATIENCE_SECONDS = 60.0
#: On an idle machine: a process starts, a thread gets its turn.
_SLACK_SECONDS = 3.0


class NotReachedError(Exception):
    """What a fault waits for, such as a job that trains, has not come; the fault has not fired."""


@dataclass
class Victim:
    """A job that a fault is meant for, while one of its attempts runs."""

    order: Order
    job_id: str
    attempt: int
    trainer: Process
    worker: Member


class World:
    """The parts, and the few things that many faults do."""

    def __init__(self, fleet: Fleet, load: Load, history: History, watch: Watch, tools: Tools, pace: Pace) -> None:
        self.fleet = fleet
        self.load = load
        self.history = history
        self.watch = watch
        self.tools = tools
        self._impatient = Ledger(fleet.postgres)
        self.ledger = Ledger(fleet.postgres, patience=_PATIENCE_SECONDS)
        self.pace = pace
        self._claiming = threading.Lock()
        self._claimed: set[str] = set()

    @contextmanager
    def claim(self, *names: str) -> Iterator[None]:
        """Have parts of the fleet to oneself, such as a server. Raises NotReachedError when another fault has one."""
        with self._claiming:
            if self._claimed & set(names):
                raise NotReachedError(f"another fault has {self._claimed & set(names)}")
            self._claimed |= set(names)
        try:
            yield
        finally:
            with self._claiming:
                self._claimed -= set(names)

    @property
    def slack_seconds(self) -> float:
        """What the machine adds just now to what the product promises."""
        return self.pace.stretch(_SLACK_SECONDS)

    @property
    def moments(self) -> Moments:
        return self.fleet.moments

    @property
    def lease(self) -> float:
        return self.fleet.shape.lease_seconds

    def accepted(self, spec: Spec | None = None, **arguments: Any) -> Order:
        """A new order whose job exists. Raises NotReachedError."""
        order = self.load.order(spec, **arguments)
        if not order.accepted.wait(self.pace.stretch(_PATIENCE_SECONDS)) or order.job_id is None:
            raise NotReachedError(f"{order.key} was not accepted: {order.trouble}")
        return order

    def victim(self, spec: Spec | None = None, *, step: int = 1, **arguments: Any) -> Victim:
        """A new job, at the latest at `step`. Raises NotReachedError."""
        return self.at_work(self.accepted(spec, **arguments), step=step)

    def at_work(self, order: Order, *, step: int = 1, after_attempt: int = 0) -> Victim:
        """The order's job once an attempt later than `after_attempt` has taken `step` steps. Raises NotReachedError."""
        job_id = order.job_id or ""

        def look() -> Victim | None:
            row = self.ledger.job(job_id)
            if row is None or row["state"] != "running" or row["attempt"] <= after_attempt:
                return None
            if step and (row["progress"] or {}).get("step", 0) < step:
                return None
            trainer = self.fleet.table.trainer_of(job_id, row["attempt"])
            worker = self.fleet.worker_of(trainer.pid) if trainer else None
            if trainer is None or worker is None:
                return None
            return Victim(order, job_id, row["attempt"], trainer, self.fleet.members[worker])

        victim, _ = until(lambda: look() or order.done.is_set(), self.pace.stretch(_PATIENCE_SECONDS))
        if not isinstance(victim, Victim):
            raise NotReachedError(f"{job_id} never came to step {step} of an attempt after {after_attempt}")
        return victim

    def glance(self, job_id: str) -> dict[str, Any] | None:
        """A job's row, if PostgreSQL answers now."""
        try:
            return self._impatient.job(job_id)
        except psycopg.OperationalError:
            return None

    def kill(self, *pids: int) -> float:
        """SIGKILL; returns when (Unix time)."""
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        return time.time()

    @contextmanager
    def frozen(self, *pids: int) -> Iterator[None]:
        """SIGSTOP to each, in this order, for the block. Raises NotReachedError when one of them has ended."""
        stopped: list[int] = []
        try:
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
                stopped.append(pid)
            yield
        except ProcessLookupError as error:
            raise NotReachedError("who was to be stopped had ended") from error
        finally:
            for pid in reversed(stopped):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def family_of(self, pid: int) -> list[Process]:
        """A process of the fleet and its descendants."""
        return family(self.fleet.table.look(), pid)

    def runs(self, pid: int) -> bool:
        return self.fleet.table.runs(pid)

    def random_member(self, kind: str, rng: random.Random) -> Member:
        return self.fleet.members[rng.choice(self.fleet.named(kind))]
