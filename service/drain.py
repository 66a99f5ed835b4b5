"""The end of a process' service: it says that it is not ready, then takes nothing new, then ends what it holds."""

import time

from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import error_response, shutting_down

# What is asked about the process itself; it is answered to the end.
_EXEMPT = ("/healthz", "/readyz")


class Drain:
    """How far the end is. Asked for once; what it does then depends on the time alone."""

    def __init__(self, *, unready_seconds: float, drain_seconds: float) -> None:
        """unready_seconds: from the first no of /readyz on, until requests are refused.

        drain_seconds: from then on, what the requests in flight may take.
        """
        self._unready_seconds = unready_seconds
        self._drain_seconds = drain_seconds
        self._asked_at: float | None = None
        self.requests = 0
        """Those in flight."""

    def begin(self) -> None:
        """Ask for the end. Asking again changes nothing."""
        if self._asked_at is None:
            self._asked_at = time.monotonic()

    @property
    def is_asked(self) -> bool:
        """Whether balancers should look for another process."""
        return self._asked_at is not None

    @property
    def refuses(self) -> bool:
        """Whether new requests are refused, and streams that could go on for hours end."""
        return self._asked_at is not None and self._passed(self._asked_at) >= self._unready_seconds

    @property
    def is_over(self) -> bool:
        """Whether there is nothing left to wait for, or no time."""
        if self._asked_at is None or not self.refuses:
            return False
        return self.requests == 0 or self._passed(self._asked_at) >= self.seconds

    @property
    def seconds(self) -> float:
        """How long it takes at most."""
        return self._unready_seconds + self._drain_seconds

    @staticmethod
    def _passed(since: float) -> float:
        return time.monotonic() - since


class DrainGate:
    """ASGI middleware: counts the requests in flight, and refuses those that come too late."""

    def __init__(self, app: ASGIApp, drain: Drain) -> None:
        self.app = app
        self._drain = drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run one request, or answer 503."""
        if scope["type"] != "http" or scope["path"] in _EXEMPT:
            await self.app(scope, receive, send)
        elif self._drain.refuses:
            response = error_response(shutting_down(), scope["state"].get("request_id"))
            await response(scope, receive, send)
        else:
            self._drain.requests += 1
            try:
                await self.app(scope, receive, send)
            finally:
                self._drain.requests -= 1
