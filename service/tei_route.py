"""Routes whose errors have the shape and the status that clients of text-embeddings-inference expect."""

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError

from api_schemas.errors import LikenessError
from api_schemas.tei import ErrorType, TeiErrorBody
from service.errors import BACKEND_AWAY, away_refusal, headers_of, validation_refusal
from service.strict_route import StrictRoute

#: For `responses=` of a router.
TEI_ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": TeiErrorBody, "description": "The request was refused. Without a valid key, as under /v1."},
    "5XX": {"model": TeiErrorBody, "description": "The service failed; `Retry-After` is set where it helps."},
}


class TeiRoute(StrictRoute):
    """Use as `APIRouter(route_class=TeiRoute)`.

    What stops a request before its route, such as a missing key, is answered as everywhere else.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The strict handler, with its refusals in another shape."""
        handle = super().get_route_handler()

        async def handle_for_tei(request: Request) -> Response:
            try:
                return await handle(request)
            except RequestValidationError as error:
                return _response(request, validation_refusal(request, error))
            except LikenessError as error:
                return _response(request, error)
            except BACKEND_AWAY as error:
                return _response(request, away_refusal(error))

        return handle_for_tei


def _response(request: Request, error: LikenessError) -> Response:
    body = TeiErrorBody(
        error=error.message,
        error_type=_error_type(error),
        code=error.code,
        param=error.param,
        request_id=getattr(request.state, "request_id", None),
    )
    # Pure ASCII, as every answer to an error is.
    content = json.dumps(body.model_dump()).encode("ascii")
    return Response(content, _status(error), headers_of(error), media_type="application/json")


def _error_type(error: LikenessError) -> ErrorType:
    if error.status >= 500:
        return "Unhealthy" if error.code == "service_unavailable" else "Backend"
    if error.status == 429:
        return "Overloaded"
    return "Empty" if error.code == "empty_input" else "Validation"


def _status(error: LikenessError) -> int:
    """422 for what is wrong in a body; the other statuses, such as 404, are those of /v1."""
    return 422 if error.status == 400 and error.code != "empty_input" else error.status
