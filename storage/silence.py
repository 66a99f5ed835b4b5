"""Connections that don't wait for ever for a server that has fallen silent.

A peer that vanished, or a proxy that stopped reading, may go on acknowledging what it is sent: TCP is content, and the
server's own statement_timeout is of no use to who can't hear it. So every wait for an answer ends here, by our clock.
"""

import threading
import time
from typing import Any

import psycopg
from psycopg.abc import RV, PQGen, PQGenConn

_PAUSE_SECONDS = 1.0
_LOOK_EVERY_SECONDS = 0.1


class Silence:
    """Whether a server has fallen silent, as far as the threads that talk to it know.

    Once one of them has waited in vain nobody else does: for a moment all are turned away, and then one at a time may
    try whether the server is back. So the threads of a process are never all taken by waiting.
    """

    def __init__(
        self, seconds: float, *, connect_seconds: float | None = None, pause_seconds: float = _PAUSE_SECONDS
    ) -> None:
        self.seconds = seconds
        """How long an answer may take."""
        self.connect_seconds = connect_seconds or seconds
        """How long connecting may take, which is several answers."""
        self._pause_seconds = pause_seconds
        self._lock = threading.Lock()
        self._until: float | None = None
        self._trying: int | None = None

    def may_ask(self) -> bool:
        """Whether the calling thread may talk to the server now."""
        with self._lock:
            if self._until is None or self._trying == threading.get_ident():
                return True
            if time.monotonic() < self._until:
                return False
            self._trying, self._until = threading.get_ident(), time.monotonic() + self.seconds
            return True

    def begin(self) -> None:
        """Somebody has waited in vain."""
        with self._lock:
            self._trying, self._until = None, time.monotonic() + self._pause_seconds

    def end(self) -> None:
        """The server has answered."""
        with self._lock:
            self._trying = self._until = None

    def error(self) -> psycopg.OperationalError:
        """What to raise where it lasts."""
        return psycopg.OperationalError(f"the server has not answered for {self.seconds:g} s")


def impatient(silence: Silence) -> type[psycopg.Connection[Any]]:
    """A class of connections on which no answer is waited for longer than `silence` allows.

    One that has waited in vain raises OperationalError and is closed: nobody knows what its server still does.
    """

    class ImpatientConnection(psycopg.Connection[Any]):
        @classmethod
        def connect(cls, *args: Any, **kwargs: Any) -> psycopg.Connection[Any]:  # type: ignore[override]
            if not silence.may_ask():
                raise silence.error()
            return super().connect(*args, **kwargs)

        @classmethod
        def _connect_gen(cls, conninfo: str = "") -> PQGenConn[Any]:
            # Since connect_timeout is 2 s at the least.
            deadline = time.monotonic() + silence.connect_seconds
            connecting = super()._connect_gen(conninfo)
            wanted = next(connecting)
            while True:
                ready = yield wanted
                if not ready and time.monotonic() > deadline:
                    silence.begin()
                    raise silence.error()
                try:
                    wanted = connecting.send(ready)
                except StopIteration as done:
                    return done.value

        def wait(self, gen: PQGen[RV], interval: float = _LOOK_EVERY_SECONDS, timeout: float | None = None) -> RV:
            if timeout is not None:  # for notifications, which need not come
                return super().wait(gen, interval, timeout)
            try:
                return super().wait(gen, interval, silence.seconds)
            except psycopg.errors._WaitTimeout as timed_out:
                self.close()
                silence.begin()
                raise silence.error() from timed_out

    return ImpatientConnection
