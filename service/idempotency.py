"""Requests that are sent again because their answer was lost: what they create is created once."""

import hashlib
import json
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Annotated, Any

from anyio import CancelScope, WouldBlock
from fastapi import Depends, Header, Request, Response
from pydantic import BaseModel
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from api_schemas.errors import LikenessError
from service.keys import Caller
from service.state import ServiceState
from storage import idempotency
from storage.claims import claimed
from storage.idempotency import Asking

REPLAYED_HEADER = "Idempotency-Replayed"

# What OpenAI's clients say in every request of theirs.
_RETRY_COUNT = "x-stainless-retry-count"
_READ_TIMEOUT = "x-stainless-read-timeout"
#: Their own default, and the longest that they wait before they send again.
_DEFAULT_READ_SECONDS, _LONGEST_PAUSE_SECONDS = 600.0, 120.0

IdempotencyKey = Annotated[
    str | None,
    Header(
        max_length=255,
        pattern=r"^[\x21-\x7e]+$",
        description="A name for this request, of the client's making. Sent again with the same name within 24 hours, "
        "it gets the first answer again and creates nothing.",
    ),
]


class Sending:
    """One sending of a request that creates something."""

    def __init__(self, request: Request, key: str | None) -> None:
        self.key = key
        self._place = f"{request.method} {request.url.path}"
        self._came_at = time.monotonic()
        self._retry = _count(request.headers.get(_RETRY_COUNT, ""))
        self._read_seconds = _seconds(request.headers.get(_READ_TIMEOUT, ""))

    def once(self, session: Session, content: Any, create: Callable[[], BaseModel]) -> Response:
        """The answer to the request that asks for `content`: what `create` makes, or what it made before.

        The answer is kept in the session's commit. Raises LikenessError `idempotency_key_in_use` or
        `idempotency_key_reused`.
        """
        asking = self._asking(content)
        before = idempotency.first_answer(session, asking)
        if before is not None:
            return _json(before, replayed=True)
        body = create().model_dump_json()
        idempotency.keep(session, asking, body)
        return _json(body)

    def again(self, session: Session, content: Any) -> Response | None:
        """What `once` has answered before. Raises what it does."""
        before = idempotency.first_answer(session, self._asking(content))
        return None if before is None else _json(before, replayed=True)

    @asynccontextmanager
    async def receiving(self, state: ServiceState, caller: Caller) -> AsyncIterator[None]:
        """Hold the key while a long body comes, so that nobody sends it twice at once for nothing.

        `once` makes sure of what matters; so where many do this at a time, some do without.
        Raises LikenessError `idempotency_key_in_use`.
        """
        if self.key is None:
            yield
            return
        try:
            state.claims.acquire_on_behalf_of_nowait(self)
        except WouldBlock:
            yield
            return
        try:
            async with _claimed(state, idempotency.claim_name(caller.team_id, self.key)):
                yield
        finally:
            state.claims.release_on_behalf_of(self)

    def _asking(self, content: Any) -> Asking:
        told = json.dumps([self._place, content], sort_keys=True, ensure_ascii=True)
        return Asking(
            fingerprint=hashlib.sha256(told.encode()).hexdigest(),
            key=self.key,
            retry=self._retry,
            reach=timedelta(seconds=(self._retry or 0) * (self._read_seconds + _LONGEST_PAUSE_SECONDS)),
            came_at=self._came_at,
        )


def sending_of(request: Request, idempotency_key: IdempotencyKey = None) -> Sending:
    """How a request was sent. Raises LikenessError `bad_request` for a key that is given twice."""
    if len(request.headers.getlist("idempotency-key")) > 1:
        raise LikenessError("bad_request", "Idempotency-Key is given more than once; send it once.")
    return Sending(request, idempotency_key)


#: What a route declares that creates something.
SendingDep = Annotated[Sending, Depends(sending_of)]


def is_replay(answer: Response) -> bool:
    """Whether an answer is one of before."""
    return REPLAYED_HEADER in answer.headers


@asynccontextmanager
async def _claimed(state: ServiceState, name: str) -> AsyncIterator[None]:
    claim = claimed(state.database, name)
    is_mine = await run_in_threadpool(claim.__enter__)
    try:
        if not is_mine:
            raise idempotency.in_use()
        yield
    finally:
        with CancelScope(shield=True):
            await run_in_threadpool(claim.__exit__, None, None, None)


def _json(body: str, *, replayed: bool = False) -> Response:
    headers = {REPLAYED_HEADER: "true"} if replayed else None
    return Response(body, headers=headers, media_type="application/json")


def _count(sent: str) -> int | None:
    return int(sent) if re.fullmatch(r"\d{1,4}", sent) else None


def _seconds(sent: str) -> float:
    known = re.fullmatch(r"\d{1,6}(\.\d{1,9})?", sent)
    return float(sent) if known else _DEFAULT_READ_SECONDS
