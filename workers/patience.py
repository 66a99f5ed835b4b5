"""Writes that must not be lost because the database is away for a moment."""

import time
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy.exc import OperationalError

Answer = TypeVar("Answer")

#: How long such a write may wait, unless somebody else says so. The lease ends sooner or later anyway.
_PATIENCE_SECONDS = 40.0
_PAUSE_SECONDS = 0.5


def patiently(work: Callable[[], Answer], *, until: Callable[[], bool] | None = None) -> Answer:
    """Do a piece of database work, again and again while the database is away.

    Work whose answer was lost is done twice: it must be such that this does no harm. Raises OperationalError
    when patience ends: when `until` says so, or after a while if it isn't given.
    """
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            return work()
        except OperationalError:
            if until() if until is not None else time.monotonic() > deadline:
                raise
            time.sleep(_PAUSE_SECONDS)
