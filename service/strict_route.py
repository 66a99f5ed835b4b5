"""Routes in FastAPI's plain style whose JSON bodies went through the strict reader and a size limit.

FastAPI turns whatever goes wrong while it reads a body into its own 400. So the body is read and parsed
before FastAPI's handler runs; that one then finds both done.
"""

import email.message
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, ClassVar

from fastapi import Request, Response, params
from fastapi.routing import APIRoute

from api_schemas.errors import LikenessError
from service.strict_json import parse_json

MAX_JSON_BYTES = 10 * 1024 * 1024


class StrictRoute(APIRoute):
    """Use as `APIRouter(route_class=StrictRoute)`.

    Routes without a body, with a form, or that take the bare `Request` stay as FastAPI made them.
    A subclass with another `max_json_bytes` serves a route that needs a larger body.
    """

    max_json_bytes: ClassVar[int] = MAX_JSON_BYTES

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's own handler, behind the strict reader where the route declares a JSON body."""
        handle = super().get_route_handler()
        if self.body_field is None or isinstance(self.body_field.field_info, params.Form):
            return handle

        async def handle_strictly(request: Request) -> Response:
            return await handle(await _read_json(request, self.max_json_bytes))

        return handle_strictly


class JsonRequest(Request):
    """A request whose body has been read and parsed."""

    def __init__(self, request: Request, body: bytes) -> None:
        super().__init__(request.scope, request.receive)
        self._body = body
        self._json = parse_json(body) if body else None

    async def body(self) -> bytes:
        """The body as it came."""
        return self._body

    async def json(self) -> Any:
        """The value parsed from the body."""
        return self._json


async def stream_body(request: Request, limit: int, too_large: LikenessError | None = None) -> AsyncIterator[bytes]:
    """The body piece by piece, for routes that write it to disk or read it line by line.

    Raises `too_large`, by default a LikenessError request_too_large: before the first byte where Content-Length
    tells, else at the piece that exceeds `limit` bytes. Raises LikenessError unsupported_encoding for a compressed
    body.
    """
    _refuse_compressed(request)
    too_large = too_large or LikenessError(
        "request_too_large", f"The body is larger than the {limit} bytes this route accepts."
    )
    if int(request.headers.get("content-length", 0)) > limit:
        raise too_large
    received = 0
    async for piece in request.stream():
        received += len(piece)
        if received > limit:
            raise too_large
        yield piece


async def read_body(request: Request, limit: int) -> bytes:
    """The whole body; raises what `stream_body` raises."""
    return b"".join([piece async for piece in stream_body(request, limit)])


async def _read_json(request: Request, limit: int) -> JsonRequest:
    if _has_body(request):
        _refuse_compressed(request)
        _refuse_other_media(request)
    return JsonRequest(request, await read_body(request, limit))


def _has_body(request: Request) -> bool:
    return "transfer-encoding" in request.headers or request.headers.get("content-length", "0") != "0"


def _refuse_compressed(request: Request) -> None:
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise LikenessError(
            "unsupported_encoding", "The body has a Content-Encoding; send it uncompressed, without one."
        )


def _refuse_other_media(request: Request) -> None:
    header = email.message.Message()
    header["content-type"] = request.headers.get("content-type", "missing/missing")
    charset = header.get_content_charset("utf-8").lower()
    if header.get_content_type() != "application/json" or charset not in ("utf-8", "utf8", "us-ascii"):
        raise LikenessError(
            "unsupported_media_type", "This route reads JSON in UTF-8; send `Content-Type: application/json`."
        )
