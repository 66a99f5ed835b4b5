"""The right to work on a job, kept by a thread of its own that nobody can keep from it."""

from __future__ import annotations

import threading
import time

import structlog
from sqlalchemy.exc import OperationalError

from storage.attempts import StaleAttempt
from storage.held_lease import HeldLease, Orders
from workers.shared_page import SharedPage

log = structlog.get_logger("likeness.lease")

# Shares of a lease. Of one of 45 s: renewed every 3 s; an answer is waited for 2 s; without one, the training is to
# stop 10 s before the end, so that it has stopped writing when another begins.
_RENEWAL = 1 / 15
_MARGIN = 10 / 45
_ANSWER = 1 / 4
_LONGEST_ANSWER_SECONDS = 2.0
_LOOK_EVERY_SECONDS = 1.0


def answer_within(seconds: float) -> float:
    """How long an answer may take to the renewal of a lease of so many seconds."""
    return min(_LONGEST_ANSWER_SECONDS, seconds * _ANSWER)


class KeptLease:
    """A lease that was taken with `storage.attempts.start`, renewed as long as the block runs.

    Its end is judged by the monotonic clock, from the moment a renewal was *sent*: the answer's delay and jumps of
    the wall clock can only make it end early.
    """

    def __init__(self, held: HeldLease, *, seconds: float, taken: float, page: SharedPage) -> None:
        """taken: when it was asked for, by the monotonic clock. The page is told until when the training may go on."""
        self._held = held
        self._seconds = seconds
        self._page = page
        self._renewed = taken
        self._prolong(taken)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        #: What has been asked of the job.
        self.orders = Orders()
        #: The job has ended, was cancelled, or was given to another worker.
        self.lost = False

    @property
    def ends(self) -> float:
        """When it ends unless it is renewed, by the monotonic clock."""
        return self._renewed + self._seconds

    @property
    def stops(self) -> float:
        """When the training must have begun to stop, unless it is renewed."""
        return self._page.until

    def __enter__(self) -> KeptLease:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(_LOOK_EVERY_SECONDS)  # it may be waiting for a server that is away, and nobody waits for it

    def _keep(self) -> None:
        try:
            while not self.lost and not self._over.wait(min(_LOOK_EVERY_SECONDS, self._seconds * _RENEWAL)):
                self._look()
        finally:
            self._held.close()

    def _look(self) -> None:
        """Renew if it is time to, and hear what is asked of the job."""
        sent = time.monotonic()
        try:
            if sent - self._renewed >= self._seconds * _RENEWAL:
                self._held.renew()
                self._prolong(sent)
            self.orders = self._held.orders()
        except StaleAttempt:
            self.lost = True
        except OperationalError as error:
            left = round(self.ends - time.monotonic(), 1)
            log.warning("lease_not_renewed", seconds_left=left, reason=type(error).__name__)
        except Exception:  # the edge of a thread: without it nobody would renew, and nobody would know
            log.exception("lease_not_renewed")

    def _prolong(self, sent: float) -> None:
        self._renewed = sent
        self._page.until = self.ends - self._seconds * _MARGIN
