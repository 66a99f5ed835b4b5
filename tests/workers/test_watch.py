"""Processes that end, or don't, when they are told to; leases that say what they are told to say."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from storage.held_lease import Orders
from storage.processes import start_child
from workers.stopping import StopRequest
from workers.watch import Ending, Reason, watch

WAITS = "import time; print('ready', flush=True); time.sleep(600)"
LEAVES = f"import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(75)); {WAITS}"
DEAF = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {WAITS}"


@dataclass
class Lease:
    """What of a KeptLease is looked at."""

    lost: bool = False
    orders: Orders = field(default_factory=Orders)
    stops: float = math.inf
    ends: float = math.inf


class Watched:
    """A process that is watched from a thread."""

    def __init__(self, program: str, *, stop_seconds: float = 600.0) -> None:
        self.lease, self.stop = Lease(), StopRequest()
        self.overdue_ended = 0
        self._process = start_child([sys.executable, "-c", program], output=subprocess.PIPE)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"
        self.pid = self._process.pid
        self._ending: list[Ending] = []
        self._thread = threading.Thread(target=self._watch, args=[stop_seconds])
        self._thread.start()

    def _watch(self, stop_seconds: float) -> None:
        lease: Any = self.lease
        self._ending.append(
            watch(self._process, lease, self.stop, stop_seconds=stop_seconds, on_overdue=self._end_overdue)
        )

    def _end_overdue(self) -> bool:
        self.overdue_ended += 1
        self.lease.lost = self.overdue_ended == 2
        return self.lease.lost

    def ending(self) -> Ending:
        self._thread.join(timeout=60)
        assert self._ending, "it is still watched"
        return self._ending[0]

    def close(self) -> None:
        self._process.kill()
        self._thread.join()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


@pytest.fixture
def watched() -> Iterator[Any]:
    made: list[Watched] = []

    def begin(program: str, **options: float) -> Watched:
        made.append(Watched(program, **options))
        return made[-1]

    yield begin
    for each in made:
        each.close()


def test_a_training_that_ends_by_itself_is_only_waited_for(watched: Any) -> None:
    ending = watched("print('ready', flush=True); raise SystemExit(7)").ending()

    assert (ending.code, ending.reason, ending.killed) == (7, Reason.NONE, False)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda it: it.stop.hear(signal.SIGTERM, None), Reason.WORKER_STOPS),
        (lambda it: setattr(it.lease, "orders", Orders(pause=True)), Reason.PAUSE),
        (lambda it: setattr(it.lease, "stops", 0.0), Reason.DATABASE_AWAY),
        (lambda it: setattr(it.lease, "lost", True), Reason.LEASE_LOST),
    ],
)
def test_a_training_that_is_told_to_stop_does_so_in_its_own_way(watched: Any, change: Any, reason: Reason) -> None:
    training = watched(LEAVES)

    change(training)

    assert training.ending()[:3] == (75, reason, False)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda it: it.stop.hear(signal.SIGTERM, None), Reason.WORKER_STOPS),
        (lambda it: it.stop.hear(signal.SIGUSR1, None), Reason.AT_ONCE),
        (lambda it: it.lease.__dict__.update(stops=0.0, ends=time.monotonic() + 0.3), Reason.DATABASE_AWAY),
        (lambda it: setattr(it.lease, "lost", True), Reason.LEASE_LOST),
    ],
)
def test_a_training_that_does_not_stop_is_killed(watched: Any, change: Any, reason: Reason) -> None:
    training = watched(DEAF, stop_seconds=0.3)

    change(training)

    assert training.ending()[:3] == (-signal.SIGKILL, reason, True)


def test_a_pause_that_takes_its_time_is_cut_short_by_what_is_more_urgent(watched: Any) -> None:
    training = watched(DEAF)
    training.lease.orders = Orders(pause=True)

    training.stop.hear(signal.SIGUSR1, None)

    assert training.ending()[:3] == (-signal.SIGKILL, Reason.AT_ONCE, True)


def test_a_frozen_watcher_whose_lease_is_long_over_leaves_its_training_no_time(watched: Any) -> None:
    training = watched(DEAF)
    training.lease.__dict__.update(stops=0.0, ends=0.0)

    assert training.ending().killed


def test_a_job_that_takes_longer_than_it_may_is_ended_however_often_that_must_be_tried(watched: Any) -> None:
    training = watched(LEAVES)
    training.lease.orders = Orders(overdue=True)

    assert training.ending()[:2] == (75, Reason.LEASE_LOST)
    assert training.overdue_ended == 2


def test_a_training_that_somebody_kills_was_not_killed_by_its_watcher(watched: Any) -> None:
    training = watched(WAITS)
    os.kill(training.pid, signal.SIGKILL)

    ending = training.ending()
    assert (ending.code, ending.reason, ending.killed) == (-signal.SIGKILL, Reason.NONE, False)
    assert not ending.out_of_memory
