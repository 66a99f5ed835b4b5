"""Whatever goes wrong in a request → one answer in one shape (api_schemas.errors.ErrorBody).

No answer says more than its LikenessError does: no stack, no path, no SQL. Those go to the log.
"""

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, cast

import redis.exceptions
import sqlalchemy.exc
import structlog
from fastapi import FastAPI, Request, Response, params
from fastapi.exceptions import RequestValidationError
from pydantic.fields import FieldInfo
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match

from api_schemas.errors import ErrorBody, LikenessError
from service.validation_errors import explain

log = structlog.get_logger(__name__)

#: For `FastAPI(responses=…)`: every route declares our body, and FastAPI then leaves out its own 422.
ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorBody, "description": "The request was refused; `error.code` says why."},
    "5XX": {"model": ErrorBody, "description": "The service failed; `Retry-After` is set where it helps."},
}

#: Errors of a database or queue that is away, restarting or out of connections.
BACKEND_AWAY: tuple[type[Exception], ...] = (
    sqlalchemy.exc.OperationalError,
    sqlalchemy.exc.InterfaceError,
    sqlalchemy.exc.TimeoutError,
    redis.exceptions.ConnectionError,
    redis.exceptions.TimeoutError,
)
_RETRY_AFTER = {"Retry-After": "2"}

#: OpenAI's clients retry every 409 and 5xx on their own; these will not get better.
_PERMANENT = frozenset(
    {"job_already_ended", "file_in_use", "upload_already_ended", "upload_expired", "model_output_invalid"}
)

_CODE_OF_STATUS = {
    400: "bad_request",
    401: "invalid_api_key",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    413: "request_too_large",
    415: "unsupported_media_type",
    429: "rate_limit_exceeded",
    431: "headers_too_large",
    503: "service_unavailable",
}
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


def install_error_handlers(app: FastAPI) -> None:
    """Answer every exception of `app` in our shape."""
    app.add_exception_handler(LikenessError, _answer_refusal)
    app.add_exception_handler(RequestValidationError, _answer_validation)
    app.add_exception_handler(HTTPException, _answer_http)
    app.add_exception_handler(ClientDisconnect, _answer_nobody)
    for kind in BACKEND_AWAY:
        app.add_exception_handler(kind, answer_away)
    app.add_exception_handler(Exception, answer_unexpected)


def error_response(error: LikenessError, request_id: str | None) -> Response:
    """The answer to `error`. Pure ASCII, so that no text of a stranger can keep it from being sent."""
    body = json.dumps(error.body(request_id)).encode("ascii")
    return Response(body, error.status, headers_of(error), media_type="application/json")


def headers_of(error: LikenessError) -> dict[str, str]:
    """The headers of the answer to `error`: its own, and whether to send the request again."""
    return {"x-should-retry": "false", **error.headers} if error.code in _PERMANENT else dict(error.headers)


def shutting_down() -> LikenessError:
    """What is told to a request that this process won't do any more; another may."""
    return LikenessError(
        "service_unavailable",
        "The service is shutting down; try again.",
        headers={"Retry-After": "1", "x-should-retry": "true", "Connection": "close"},
    )


async def answer_unexpected(request: Request, error: Exception) -> Response:
    """500 for the client; the traceback for whoever reads the log, under the same request id."""
    log.error("unexpected_error", error=type(error).__name__, exc_info=error)
    refusal = LikenessError("internal_error", "The service failed on this request; report it with the request id.")
    return _answer(request, refusal)


async def _answer_refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, LikenessError)  # noqa: S101  what it is registered for
    return _answer(request, error)


async def _answer_validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101  what it is registered for
    return _answer(request, validation_refusal(request, error))


def validation_refusal(request: Request, error: RequestValidationError) -> LikenessError:
    """What is wrong with the part of a request, such as its body, in which something was found first."""
    errors = error.errors()
    source = errors[0]["loc"][0]
    here = [{**found, "loc": found["loc"][1:]} for found in errors if found["loc"][0] == source]
    return explain(here, _body_type(request) if source == "body" else Any)


async def _answer_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101  what it is registered for
    code = _http_code(error, is_form=isinstance(_body_info(request), params.Form))
    message = _http_message(code, error)
    headers: Mapping[str, str] = error.headers or {}
    if code == "method_not_allowed":
        headers = {**headers, "Allow": ", ".join(_allowed_methods(request))}
    return _answer(request, LikenessError(code, message, headers=headers))


async def answer_away(request: Request, error: Exception) -> Response:
    return _answer(request, away_refusal(error))


def away_refusal(error: Exception) -> LikenessError:
    """What is told while the database or the queue is away; the log has why."""
    # Not the whole text: SQLAlchemy's holds the statement and its parameters, which are somebody's data.
    log.warning("backend_away", error=type(error).__name__, reason=str(getattr(error, "orig", "")) or None)
    message = "The database or the queue can't be reached; try again in a moment."
    return LikenessError("service_unavailable", message, headers=_RETRY_AFTER)


async def _answer_nobody(request: Request, _error: Exception) -> Response:
    """The client left while we read its body: no failure of ours, and nobody reads this."""
    return _answer(request, LikenessError("bad_request", "The connection ended before the body did."))


def _answer(request: Request, error: LikenessError) -> Response:
    return error_response(error, getattr(request.state, "request_id", None))


def _body_type(request: Request) -> Any:
    info = _body_info(request)
    return Any if info is None else info.annotation


def _body_info(request: Request) -> FieldInfo | None:
    """What the route says its body is."""
    field = getattr(request.scope.get("route"), "body_field", None)
    return None if field is None else cast(FieldInfo, field.field_info)


def _http_code(error: HTTPException, *, is_form: bool) -> str:
    if is_form and error.status_code == HTTPStatus.BAD_REQUEST:  # only the form's parser says so
        return "too_many_parts" if str(error.detail).startswith("Too many") else "invalid_multipart"
    other = "bad_request" if error.status_code < HTTPStatus.INTERNAL_SERVER_ERROR else "internal_error"
    return _CODE_OF_STATUS.get(error.status_code, other)


def _http_message(code: str, error: HTTPException) -> str:
    match code:
        case "not_found":
            return "There is no such URL here; /openapi.json lists those that exist."
        case "method_not_allowed":
            return "This URL exists, but not with this method; the Allow header lists those it has."
        case "internal_error":
            return "The service failed on this request; report it with the request id."
        case _:
            return str(error.detail)


def _allowed_methods(request: Request) -> list[str]:
    """All methods of this URL; the framework names those of the first route that matches it only."""
    return [
        method
        for method in _METHODS
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in request.app.routes)
    ]
