"""/healthz and /readyz: is the process alive, and can it do its work now."""

from typing import Literal

import structlog
from fastapi import APIRouter, Response
from redis import RedisError
from sqlalchemy.exc import DBAPIError
from starlette.concurrency import run_in_threadpool

from api_schemas.base import ResponseModel
from api_schemas.errors import LikenessError
from service.state import ServiceState, StateDep
from storage import schema

router = APIRouter(tags=["platform"])
log = structlog.get_logger(__name__)

Check = Literal["ok", "failing", "not here"]


class Health(ResponseModel):
    """The process answers."""

    status: Literal["alive"] = "alive"


class Readiness(ResponseModel):
    """What was tried just now. Without the queue jobs are still accepted: they wait in the database."""

    status: Literal["ready", "not ready"]
    database: Check
    queue: Check
    inference: Check


@router.get("/healthz")
async def healthz() -> Health:
    """Whether the process is alive. Restart it when this stays silent."""
    return Health()


@router.get("/readyz", responses={503: {"model": Readiness}})
async def readyz(response: Response, state: StateDep) -> Readiness:
    """Whether the process can do its work: the database answers with the right schema, and a text gets embedded."""
    database = await run_in_threadpool(_database, state)
    inference = await _inference(state)
    ready = database == "ok" and inference != "failing"
    if not ready:
        response.status_code = 503
        response.headers["Retry-After"] = "2"
    return Readiness(
        status="ready" if ready else "not ready",
        database=database,
        queue=await run_in_threadpool(_queue, state),
        inference=inference,
    )


def _database(state: ServiceState) -> Check:
    try:
        return "ok" if schema.is_current(state.database) else "failing"
    except DBAPIError as error:
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
