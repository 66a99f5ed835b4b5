"""From the outbox to the queue, on a thread of its own: no request waits for the queue."""

import threading

import structlog
from redis import Redis, RedisError

from service.errors import BACKEND_AWAY
from storage import queue
from storage.database import Database

log = structlog.get_logger(__name__)

#: A full queue refuses too, and is not away.
_AWAY: tuple[type[Exception], ...] = (*BACKEND_AWAY, RedisError)


class Dispatcher:
    """Hands over what requests have put into the outbox.

    What it doesn't, because the queue is away or the process ends, the reconciler finds there.
    """

    def __init__(self, database: Database, redis: Redis) -> None:
        self._database = database
        self._redis = redis
        self._wanted = threading.Event()
        self._closed = False
        self._start = threading.Lock()
        self._thread: threading.Thread | None = None

    def soon(self) -> None:
        """Ask for it; returns at once."""
        with self._start:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="dispatcher", daemon=True)
                self._thread.start()
        self._wanted.set()

    def close(self, *, patience_seconds: float = 2.0) -> None:
        """End the thread, after what it is at."""
        self._closed = True
        self._wanted.set()
        if self._thread is not None:
            self._thread.join(patience_seconds)

    def _run(self) -> None:
        while True:
            self._wanted.wait()
            self._wanted.clear()
            if self._closed:
                return
            try:
                while queue.dispatch(self._database, self._redis):
                    pass
            except _AWAY as error:
                log.warning("dispatch_postponed", reason=type(error).__name__)
            except Exception:  # the edge of a thread that has to live as long as the process
                log.exception("dispatch_failed")
