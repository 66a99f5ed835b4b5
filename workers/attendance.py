"""Seeing to it that a task that works in this very process ends when it has to, whatever it is doing."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog
from sqlalchemy.exc import OperationalError

from workers import exit_codes
from workers.stopping import StopRequest

log = structlog.get_logger("likeness.tasks")

_LOOK_EVERY_SECONDS = 0.5
#: How long a task may go on that nobody needs any more.
_SECONDS_AFTER_END = 10.0


@contextmanager
def attended(
    stop: StopRequest, *, stop_seconds: float, is_over: Callable[[], bool], give_back: Callable[[], None]
) -> Iterator[None]:
    """Give the block's work back and end this process if it goes on for too long after it was told to stop, or is over.

    Both callables are called from another thread, and may raise sqlalchemy.exc.OperationalError. What the process
    leaves behind by that is swept.
    """
    done = threading.Event()
    arguments = (done, stop, stop_seconds, is_over, give_back)
    thread = threading.Thread(target=_attend, args=arguments, name="attendance", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _attend(
    done: threading.Event,
    stop: StopRequest,
    stop_seconds: float,
    is_over: Callable[[], bool],
    give_back: Callable[[], None],
) -> None:
    asked: float | None = None  # since when the work should have ended
    while not done.wait(_LOOK_EVERY_SECONDS):
        over = _tried(is_over)
        if asked is None and (over or stop.soon.is_set()):
            asked = time.monotonic()
        patience = stop_seconds if stop.soon.is_set() else _SECONDS_AFTER_END
        if stop.at_once.is_set() or (asked is not None and time.monotonic() - asked > patience):
            log.warning("task_ended_hard", reason="the worker stops" if stop.soon.is_set() else "it is over")
            _tried(give_back)
            os._exit(exit_codes.INTERRUPTED)


def _tried(work: Callable[[], bool | None]) -> bool:
    try:
        return bool(work())
    except OperationalError:
        return False
