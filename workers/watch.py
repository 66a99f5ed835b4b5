"""Watching a training process: until it ends, or has to."""

from __future__ import annotations

import enum
import math
import signal
import subprocess
import time
from collections.abc import Callable
from typing import NamedTuple

from storage.processes import wait_for_end
from workers.lease import KeptLease
from workers.oom_kills import RecentKills
from workers.stopping import StopRequest

_LOOK_EVERY_SECONDS = 0.1
# What is written by then is refused anyway, or nobody's any more.
_SECONDS_AFTER_LOSS = 1.0
# A pause loses nothing if the step and the checkpoint are waited for, and nobody else waits for the worker.
_SECONDS_TO_PAUSE = 60.0


class Reason(enum.IntEnum):
    """Why a training was told to stop, the more urgent the higher."""

    NONE = 0  # it wasn't
    PAUSE = 1
    WORKER_STOPS = 2
    DATABASE_AWAY = 3  # its lease was about to end
    LEASE_LOST = 4
    AT_ONCE = 5


class Ending(NamedTuple):
    """How a training ended."""

    code: int  # negative for a signal
    reason: Reason
    killed: bool = False  # by us, because it took too long to stop
    out_of_memory: bool | None = False  # whether the kernel has killed somebody here meanwhile; None: it doesn't say


def watch(
    training: subprocess.Popen[bytes],
    lease: KeptLease,
    stop: StopRequest,
    *,
    stop_seconds: float,
    on_overdue: Callable[[], bool],
) -> Ending:
    """Wait for the training's end; tell it to stop when there is a reason, and kill it if it doesn't.

    on_overdue: what to do once the job has taken longer than it may, until it is done: its lease is lost by that.
    """
    reason, kill_at, ended = Reason.NONE, math.inf, False
    kills = RecentKills()
    while True:
        if (code := wait_for_end(training, _LOOK_EVERY_SECONDS)) is not None:
            return Ending(code, reason, out_of_memory=kills.any())
        now = time.monotonic()
        kills.look()
        if now >= kill_at:
            training.kill()
            return Ending(training.wait(), reason, killed=True)
        found = _reason(lease, stop, now)
        if found > reason:
            reason = found
            training.send_signal(signal.SIGTERM)
            kill_at = min(kill_at, now + _seconds_left(reason, lease, now, stop_seconds))
        if lease.orders.overdue and not ended:
            ended = on_overdue()


def _reason(lease: KeptLease, stop: StopRequest, now: float) -> Reason:
    """The most urgent reason to stop that there is now."""
    reasons = {
        Reason.AT_ONCE: stop.at_once.is_set(),
        Reason.LEASE_LOST: lease.lost,
        Reason.DATABASE_AWAY: now >= lease.stops,
        Reason.WORKER_STOPS: stop.soon.is_set(),
        Reason.PAUSE: lease.orders.pause,
    }
    return next((reason for reason, holds in reasons.items() if holds), Reason.NONE)


def _seconds_left(reason: Reason, lease: KeptLease, now: float, stop_seconds: float) -> float:
    """How long a training may take to stop."""
    return {
        Reason.AT_ONCE: 0.0,
        Reason.LEASE_LOST: _SECONDS_AFTER_LOSS,
        Reason.DATABASE_AWAY: lease.ends - now,
        Reason.WORKER_STOPS: stop_seconds,
        Reason.PAUSE: _SECONDS_TO_PAUSE,
    }[reason]
