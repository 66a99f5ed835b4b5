"""What the outside learns about a request (its id) and what the log does (one line, without secrets)."""

import asyncio
import logging
import re
import secrets
import time

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import answer_unexpected, error_response, shutting_down
from storage import logs

log = structlog.get_logger(__name__)

REQUEST_ID_HEADER = "x-request-id"
#: The name in a request's state, and of the header, of where its time went (W3C Server Timing).
SERVER_TIMING = "server-timing"
_ACCEPTED_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")

#: Lines of uvicorn's that repeat one of ours, without the request id.
_SAID_BETTER = frozenset({"Invalid HTTP request received.", "ASGI callable returned without completing response."})


def configure_logging(level: str = "INFO", *, pretty: bool | None = None) -> None:
    """Log as every process of ours does, uvicorn's loggers included.

    Pass `log_config=None, access_log=False` to uvicorn, or it puts its own handlers back.
    """
    logs.configure_logging(level, pretty=pretty)
    _adopt_uvicorn()


def new_request_id() -> str:
    """An id nobody has had."""
    return f"req_{secrets.token_hex(12)}"


class RequestTelemetry:
    """ASGI middleware, the outermost: gives each request its id and its line, and each answer the id.

    It is also where unexpected exceptions end, so that their 500 has id and line like every answer.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run one request; anything but HTTP passes through."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = _accepted_id(scope) or new_request_id()
        scope.setdefault("state", {})["request_id"] = request_id
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        await _Exchange(scope, receive, send, request_id).run(self.app)


class _Exchange:
    """One request and what became of it."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        self.scope = scope
        self.receive = receive
        self._send = send
        self.request_id = request_id
        self.began = time.perf_counter()
        self.status: int | None = None

    async def run(self, app: ASGIApp) -> None:
        try:
            await app(self.scope, self.receive, self.send)
        except asyncio.CancelledError:
            await self._answer_shutdown()
            raise
        except Exception as error:  # noqa: BLE001  the edge of the process: the client gets a 500, the log the rest
            await self._answer_unexpected(error)
        finally:
            self._write_line()

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message.setdefault("headers", [])
            headers = MutableHeaders(scope=message)
            headers[REQUEST_ID_HEADER] = self.request_id
            if timing := self.scope["state"].get(SERVER_TIMING):
                headers[SERVER_TIMING] = timing
        await self._send(message)

    async def _answer_unexpected(self, error: Exception) -> None:
        response = await answer_unexpected(Request(self.scope), error)
        if self.status is None:  # else it is too late for a status; the server cuts the connection
            await response(self.scope, self.receive, self.send)

    async def _answer_shutdown(self) -> None:
        if self.status is None:
            await error_response(shutting_down(), self.request_id)(self.scope, self.receive, self.send)

    def _write_line(self) -> None:
        write = log.warning if self.status is None or self.status >= 500 else log.info
        write(
            "request_finished",
            method=self.scope["method"],
            route=_route_template(self.scope),
            status=self.status,
            duration_ms=round((time.perf_counter() - self.began) * 1000, 1),
        )


def _accepted_id(scope: Scope) -> str | None:
    sent = Headers(scope=scope).get(REQUEST_ID_HEADER, "")
    return sent if _ACCEPTED_ID.fullmatch(sent) else None


def _route_template(scope: Scope) -> str | None:
    """The path as the route declares it; never the path sent, which may hold anything."""
    included = scope.get("fastapi", {}).get("effective_route_context")  # knows the prefix of its router
    for route in (included, scope.get("route")):
        template = getattr(route, "path_format", None)
        if template:
            return str(template)
    return None


def _adopt_uvicorn() -> None:
    for name in ("uvicorn", "uvicorn.error", "uvicorn.asgi"):
        logger = logging.getLogger(name)
        logger.handlers = []
        logger.propagate = True
    logging.getLogger("uvicorn.error").addFilter(_is_news)
    # Its access line shows the query string; ours takes its place.
    access = logging.getLogger("uvicorn.access")
    access.handlers = []
    access.propagate = False
    access.disabled = True


def _is_news(record: logging.LogRecord) -> bool:
    return record.getMessage() not in _SAID_BETTER
