"""Who is asking: the bearer key that every route under /v1 wants, and those of text-embeddings-inference."""

from collections.abc import Awaitable, Callable
from typing import Annotated, NamedTuple

import structlog
from fastapi import Depends, Request
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from api_schemas.errors import LikenessError
from service.errors import BACKEND_AWAY, answer_away, error_response
from storage import teams

_PROTECTED_TREES = ("/v1", "/tei")
#: Those of text-embeddings-inference, which has them at the root. Its /health is open, as /healthz is.
_PROTECTED_PATHS = frozenset({"/", "/embed", "/similarity", "/tokenize", "/info", "/metrics"})


class Caller(NamedTuple):
    """The team a request acts for, and the key it showed."""

    team_id: str
    key_id: str


class KeyGate:
    """ASGI middleware: lets nothing in there without a valid key, not even to read a body or to learn a 404."""

    def __init__(self, app: ASGIApp, find_caller: Callable[[str], Awaitable[Caller | None]]) -> None:
        """find_caller: whose key it is; None if it is nobody's."""
        self.app = app
        self._find_caller = find_caller

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run one request with its caller known, or answer 401."""
        if scope["type"] != "http" or not is_protected(scope["path"]):
            await self.app(scope, receive, send)
            return
        try:
            caller = await self._identify(Headers(scope=scope).get("authorization", ""))
        except BACKEND_AWAY as error:
            # The application's own handlers are further in and don't see this.
            response = await answer_away(Request(scope), error)
            await response(scope, receive, send)
            return
        if caller is None:
            response = error_response(_no_valid_key(), scope["state"].get("request_id"))
            await response(scope, receive, send)
            return
        scope["state"]["caller"] = caller
        structlog.contextvars.bind_contextvars(team=caller.team_id, key=caller.key_id)
        await self.app(scope, receive, send)

    async def _identify(self, authorization: str) -> Caller | None:
        scheme, _, key = authorization.partition(" ")
        key = key.strip()
        # A key that fails its own checksum was never ours: no query for it.
        if scheme.lower() != "bearer" or not teams.is_well_formed(key):
            return None
        return await self._find_caller(key)


def caller_of(request: Request) -> Caller:
    """The caller that the gate let in."""
    caller: Caller = request.state.caller
    return caller


#: What a route declares to know its caller.
CallerDep = Annotated[Caller, Depends(caller_of)]


def is_protected(path: str) -> bool:
    """Whether a path wants a key, whatever the method and whether or not there is such a route."""
    return path in _PROTECTED_PATHS or any(path == tree or path.startswith(f"{tree}/") for tree in _PROTECTED_TREES)


def _no_valid_key() -> LikenessError:
    # One text for every cause: what exactly is wrong with a key is nobody's business but its owner's.
    return LikenessError(
        "invalid_api_key",
        "No valid API key: send `Authorization: Bearer lk_…`. Make one with `likeness keys create NAME`; "
        "`likeness up` writes its first to DATA_DIR/admin.key.",
        headers={"WWW-Authenticate": "Bearer"},
    )
