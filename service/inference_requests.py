"""What all requests for vectors have in common: a time limit, a place in the metrics, and where their time went."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from fastapi import Request

from api_schemas.errors import LikenessError
from service.presence import while_client_waits
from service.state import ServiceState
from service.telemetry import SERVER_TIMING

if TYPE_CHECKING:
    # The API role must not import torch; this name is for the type checker.
    from service.inference.engine import Embedded

#: Milliseconds after which the client has no use for an answer any more.
TIMEOUT_HEADER = "x-request-timeout-ms"
_LONGEST_MS = 3_600_000


async def embedded_for(http: Request, state: ServiceState, work: Coroutine[Any, Any, Embedded], texts: int) -> Embedded:
    """What `work` makes of so many texts, unless the client leaves or its time is over; its place is free then.

    Raises LikenessError `request_deadline_exceeded`, `invalid_value` for a header that is no number, and what `work`
    raises.
    """
    began = time.perf_counter()
    try:
        seconds = _seconds(http)
    except LikenessError:
        work.close()
        raise
    with state.metrics.request(texts):
        try:
            async with asyncio.timeout(seconds) as limit:
                embedded = await while_client_waits(http, work)
        except TimeoutError:
            if not limit.expired():
                raise
            message = f"Not answered within the {1000 * (seconds or 0):.0f} ms that the request gives itself."
            raise LikenessError("request_deadline_exceeded", message, headers={"x-should-retry": "false"}) from None
    timings = embedded.timings
    parts = {"queue": timings.queue, "tokenize": timings.tokenize, "forward": timings.forward}
    http.scope["state"][SERVER_TIMING] = ", ".join(f"{part};dur={1e3 * took:.1f}" for part, took in parts.items())
    state.metrics.took(time.perf_counter() - began, timings, embedded.tokens)
    return embedded


def _seconds(http: Request) -> float | None:
    sent = http.headers.get(TIMEOUT_HEADER)
    if sent is None:
        return None
    if not (sent.isascii() and sent.isdecimal() and 1 <= int(sent[:12]) <= _LONGEST_MS):
        message = f"The header {TIMEOUT_HEADER} must be a number of milliseconds from 1 to {_LONGEST_MS}."
        raise LikenessError("invalid_value", message, param=TIMEOUT_HEADER)
    return int(sent) / 1000
