"""HTTP/1.1 as we speak it: uvicorn's h11 protocol, with deadlines, limits and refusals in our shape.

uvicorn lets a client take for ever over its headers or its body, parses headers of any size that arrive in
one piece, answers malformed requests in plain text, and reads an unwanted body to its end. What is refused
here never reaches the application, so it gets its request id and its log line here as well.
"""

import asyncio
import contextlib
import re
import resource
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, ClassVar
from urllib.parse import unquote_to_bytes

import h11
import structlog
from starlette.types import Message, Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import CLOSE_HEADER
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from api_schemas.errors import LikenessError
from service.errors import error_response
from service.telemetry import REQUEST_ID_HEADER, new_request_id

log = structlog.get_logger(__name__)

_CONTENT_LENGTH_LINE = re.compile(rb"^content-length:(.*)$", re.IGNORECASE | re.MULTILINE)
_CONTROL_BYTE = re.compile(rb"[\x00-\x1f\x7f]")
_SERVED_METHODS = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"


def _room_for_connections() -> int:
    """How many sockets fit under the process' limit on open files, some left for all else."""
    soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = 10_000
    return most if soft == resource.RLIM_INFINITY else max(64, min(most, soft - 256))


class RefusedRequest(h11.RemoteProtocolError):
    """Bytes that are a request to h11, but not to us; `error` says why."""

    def __init__(self, error: LikenessError) -> None:
        super().__init__(error.message)
        self.error = error


class StrictConnection(h11.Connection):
    """An h11 connection that refuses more, and remembers why."""

    def __init__(self, max_header_bytes: int) -> None:
        super().__init__(h11.SERVER, max_header_bytes)
        self.max_header_bytes = max_header_bytes
        self.refusal: LikenessError | None = None

    def next_event(self) -> Any:
        """h11's next event.

        Raises h11.RemoteProtocolError; `refusal` then holds the error to answer with.
        """
        try:
            return self._checked_event()
        except h11.RemoteProtocolError as error:
            self.refusal = self.refusal or _refusal_of(error)
            raise

    def _checked_event(self) -> Any:
        if self.their_state is not h11.IDLE:
            return super().next_event()
        # The head as sent: h11 limits it only while it is incomplete, and merges equal Content-Lengths.
        before = self.trailing_data[0]
        event = super().next_event()
        if isinstance(event, h11.Request):
            head = before[: len(before) - len(self.trailing_data[0])]
            _check_size(head, self.max_header_bytes)
            _check_framing(event, head)
            _check_target(event)
        return event


class BodyPace:
    """Whether a body comes fast enough: in any two halves of a window in a row, `floor` bytes.

    The first half and those in which we did not read are free.
    """

    def __init__(self, floor: int) -> None:
        self.floor = floor
        self._this_half = 0
        self._last_half: int | None = None

    def count(self, received: int) -> None:
        """Note bytes that arrived."""
        self._this_half += received

    def is_too_slow(self, *, excused: bool) -> bool:
        """To be asked at the end of every half."""
        slow = not excused and self._last_half is not None and self._last_half + self._this_half < self.floor
        self._last_half = None if excused else self._this_half
        self._this_half = 0
        return slow


class StrictHTTPProtocol(H11Protocol):
    """Use as `uvicorn.Config(http=StrictHTTPProtocol)`; a subclass may set other limits.

    uvicorn's own `limit_concurrency` is no bound on connections: it lets all in, counts idle ones, and
    answers in plain text only once a request is complete. Leave it unset.
    """

    header_seconds: ClassVar[float] = 10.0
    """From the connection, or the first byte of a later request, to the end of the headers."""
    body_seconds: ClassVar[float] = 10.0
    body_bytes: ClassVar[int] = 10 * 1024
    """At least so much of a body in any `body_seconds`: 1 KiB/s, less than any working line carries."""
    linger_seconds: ClassVar[float] = 5.0
    """How long an unwanted body is read and dropped, so that the client gets to read our answer."""
    write_seconds: ClassVar[float] = 60.0
    """How long a client may leave a full send buffer unread."""
    max_header_bytes: ClassVar[int] = 64 * 1024
    max_connections: ClassVar[int] = _room_for_connections()

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.conn: StrictConnection = StrictConnection(self.max_header_bytes)
        self._application = self.app
        self.app = self._run_application
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._pace = BodyPace(self.body_bytes)
        self._refused = False

    # What asyncio calls

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock, or turn the client away if there are too many."""
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            message = "Too many connections are open; try again in a moment."
            self._refuse(LikenessError("service_unavailable", message, headers={"Retry-After": "5"}))
        else:
            self._start("header", self.header_seconds, self._give_up_on_headers)

    def data_received(self, data: bytes) -> None:
        """Parse what came, then see which deadline is next."""
        if self._refused:
            return
        self._pace.count(len(data))
        super().data_received(data)
        self._choose_deadline(request_begun=True)

    def pause_writing(self) -> None:
        """The client does not read: give it a while."""
        super().pause_writing()
        self._start("write", self.write_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """The client reads again."""
        super().resume_writing()
        self._stop("write")

    def connection_lost(self, exc: Exception | None) -> None:
        """Leave no timer behind."""
        self._stop(*self._timers)
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    # What uvicorn calls

    def send_400_response(self, msg: str) -> None:
        """Answer what h11, or our checks, refused."""
        self._refuse(self.conn.refusal or LikenessError("bad_request", msg))

    def on_response_complete(self) -> None:
        """The next request may already be here, whole or in part."""
        super().on_response_complete()
        self._choose_deadline(request_begun=False)

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, with or without the client's help."""
        super().timeout_keep_alive_handler()
        self._choose_deadline(request_begun=False)

    def shutdown(self) -> None:
        """The server stops: a client already refused is waited for no longer."""
        if self._refused:
            self.transport.close()
        else:
            super().shutdown()

    # Deadlines

    def _choose_deadline(self, *, request_begun: bool) -> None:
        if self._refused:
            return
        if self.transport.is_closing():
            self._stop("header", "body")
            self._start("close", self.write_seconds, self.transport.abort)
            return
        self._watch_headers(begun=request_begun and self.conn.their_state is h11.IDLE)
        self._watch_body(running=self.conn.their_state is h11.SEND_BODY)

    def _watch_headers(self, *, begun: bool) -> None:
        if begun:
            self._start("header", self.header_seconds, self._give_up_on_headers)
        else:
            self._stop("header")

    def _watch_body(self, *, running: bool) -> None:
        if not running:
            self._stop("body")
        elif "body" not in self._timers:
            self._pace = BodyPace(self.body_bytes)
            self._start("body", self.body_seconds / 2, self._check_pace)

    def _check_pace(self) -> None:
        # We may be the slow ones: reading is paused while the application is behind, and a client that
        # expects "100 Continue" waits until the application asks for the body.
        excused = self.flow.read_paused or self.cycle.waiting_for_100_continue
        if self._pace.is_too_slow(excused=excused):
            self._refuse(_too_slow("The body", self.body_seconds))
        else:
            self._start("body", self.body_seconds / 2, self._check_pace)

    def _give_up_on_headers(self) -> None:
        self._refuse(_too_slow("The request's headers", self.header_seconds))

    def _start(self, name: str, seconds: float, callback: Callable[[], None]) -> None:
        """Start a timer, unless it runs: a deadline is not pushed back by bytes that trickle in."""

        def fire() -> None:
            del self._timers[name]
            callback()

        if name not in self._timers:
            self._timers[name] = self.loop.call_later(seconds, fire)

    def _stop(self, *names: str) -> None:
        for name in list(names):
            timer = self._timers.pop(name, None)
            if timer is not None:
                timer.cancel()

    # Refusals

    def _refuse(self, error: LikenessError) -> None:
        """Answer instead of the application, and close."""
        self._stop("header", "body")
        self._unset_keepalive_if_required()
        self._detach_application()
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):  # an answer has begun: no second one
            self.transport.close()
            return
        self._refused = True
        self._write_refusal(error)
        self._linger()

    def _detach_application(self) -> None:
        """The application, if it is at work on this request, learns that the client is gone."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()

    def _write_refusal(self, error: LikenessError) -> None:
        request_id = new_request_id()
        response = error_response(error, request_id)
        headers = [*response.raw_headers, (REQUEST_ID_HEADER.encode(), request_id.encode()), CLOSE_HEADER]
        reason = HTTPStatus(error.status).phrase.encode()
        head = h11.Response(status_code=error.status, headers=headers, reason=reason)
        for event in (head, h11.Data(data=bytes(response.body)), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event))
        log.info("request_refused", status=error.status, code=error.code, request_id=request_id)

    def _linger(self) -> None:
        """Close our side only. Closing at once with bytes unread would reset the connection, and the client
        might lose the answer."""
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._start("close", self.linger_seconds, self.transport.abort)

    # The application's side

    async def _run_application(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The application; when it answers before the body has come, say that we will close, and drop what
        still comes for a while, for the reason `_linger` gives."""
        ends_early = False

        async def send_and_drain(message: Message) -> None:
            nonlocal ends_early
            if message["type"] == "http.response.start":
                ends_early = self.conn.their_state is h11.SEND_BODY
                if ends_early:
                    message = {**message, "headers": [*message.get("headers", []), CLOSE_HEADER]}
            elif ends_early and not message.get("more_body", False):
                await send({**message, "more_body": True})
                await self._drop_body(receive)
                message = {"type": "http.response.body", "body": b"", "more_body": False}
            await send(message)

        await self._application(scope, receive, send_and_drain)

    async def _drop_body(self, receive: Receive) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.linger_seconds):
                while (await receive()).get("more_body", False):
                    pass


def _refusal_of(error: h11.RemoteProtocolError) -> LikenessError:
    if isinstance(error, RefusedRequest):
        return error.error
    if error.error_status_hint == HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE:
        return _headers_too_large()
    return LikenessError(
        "bad_request",
        "These bytes are not an HTTP/1.1 request: its first line, a header or the framing is malformed.",
    )


def _headers_too_large() -> LikenessError:
    return LikenessError("headers_too_large", "The request line and the headers are too long; send fewer.")


def _too_slow(what: str, seconds: float) -> LikenessError:
    message = f"{what} did not arrive in time; the limit is {seconds:g} s without enough progress."
    return LikenessError("request_timeout", message)


def _check_size(head: bytes, limit: int) -> None:
    if len(head) > limit:
        raise RefusedRequest(_headers_too_large())


def _check_framing(request: h11.Request, head: bytes) -> None:
    """One way to tell where the body ends, or a proxy before us may see another request than we do."""
    lengths = _CONTENT_LENGTH_LINE.findall(head)
    encoded = any(name == b"transfer-encoding" for name, _ in request.headers)
    if len(lengths) > 1 or any(b"," in length for length in lengths):
        raise _bad_request("Content-Length is given more than once; send it once.")
    if encoded and (lengths or request.http_version != b"1.1"):
        raise _bad_request("Content-Length and Transfer-Encoding exclude each other; send one.")


def _check_target(request: h11.Request) -> None:
    if request.method in (b"TRACE", b"CONNECT"):
        message = "This method is never served; the Allow header lists those that are."
        raise RefusedRequest(LikenessError("method_not_allowed", message, headers={"Allow": _SERVED_METHODS}))
    path, _, query = request.target.partition(b"?")
    _check_text(unquote_to_bytes(path))
    _check_text(unquote_to_bytes(query))
    if _CONTROL_BYTE.search(unquote_to_bytes(path)):
        raise RefusedRequest(LikenessError("invalid_character", "The path holds a control character."))


def _check_text(text: bytes) -> None:
    try:
        holds_nul = "\x00" in text.decode("utf-8")
    except UnicodeDecodeError:
        holds_nul = True
    if holds_nul:
        message = "The URL holds NUL or is not UTF-8 once its percent escapes are resolved."
        raise RefusedRequest(LikenessError("invalid_unicode", message))


def _bad_request(message: str) -> RefusedRequest:
    return RefusedRequest(LikenessError("bad_request", message))
