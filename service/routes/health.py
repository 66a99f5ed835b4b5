"""/healthz and /readyz: is the process alive, and can it do its work now."""

import asyncio
from collections.abc import Callable
from typing import Literal

import structlog
from anyio import move_on_after, to_thread
from fastapi import APIRouter, Response
from redis import RedisError
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from api_schemas.base import ResponseModel
from api_schemas.errors import LikenessError
from service.state import ServiceState, StateDep
from storage import schema

router = APIRouter(tags=["platform"])
log = structlog.get_logger(__name__)

Check = Literal["ok", "failing", "not here"]
#: Who asks is told within 2 s.
_CHECK_SECONDS = 1.8


class Health(ResponseModel):
    """The process answers."""

    status: Literal["alive"] = "alive"


class Readiness(ResponseModel):
    """What was tried just now. Without the queue jobs are still accepted: they wait in the database."""

    status: Literal["ready", "not ready", "stopping"]
    database: Check
    queue: Check
    inference: Check


@router.get("/healthz")
async def healthz() -> Health:
    """Whether the process is alive. Restart it when this stays silent."""
    return Health()


@router.get("/readyz", responses={503: {"model": Readiness}})
async def readyz(response: Response, state: StateDep) -> Readiness:
    """Whether the process can do its work: the database answers with the right schema, and a text gets embedded.

    From the moment on in which it is asked to stop, it can't.
    """
    database, queue, inference = await asyncio.gather(
        _in_time(_database, state), _in_time(_queue, state), _inference(state)
    )
    ready = database == "ok" and inference != "failing" and not state.drain.is_asked
    if not ready:
        response.status_code = 503
        response.headers["Retry-After"] = "2"
    status: Literal["not ready", "stopping"] = "stopping" if state.drain.is_asked else "not ready"
    return Readiness(status="ready" if ready else status, database=database, queue=queue, inference=inference)


async def _in_time(check: Callable[[ServiceState], Check], state: ServiceState) -> Check:
    # On a thread of its own: those of the requests may all be waiting.
    with move_on_after(_CHECK_SECONDS):
        return await to_thread.run_sync(check, state, abandon_on_cancel=True, limiter=state.checks)
    return "failing"


def _database(state: ServiceState) -> Check:
    try:
        return "ok" if schema.is_current(state.database) else "failing"
    except (DBAPIError, PoolTimeoutError) as error:
        log.warning("database_not_ready", reason=type(error).__name__)
        return "failing"


def _queue(state: ServiceState) -> Check:
    try:
        state.redis.ping()
    except RedisError as error:
        log.warning("queue_not_ready", reason=type(error).__name__)
        return "failing"
    return "ok"


async def _inference(state: ServiceState) -> Check:
    if state.inference is None:
        return "not here"
    try:
        await state.inference.probe()
    except (LikenessError, TimeoutError) as error:
        log.warning("inference_not_ready", reason=str(error))
        return "failing"
    return "ok"
