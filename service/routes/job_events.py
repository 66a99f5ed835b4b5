"""/v1/fine_tuning/jobs/{id}/events: what has happened to a job, and what happens to it now."""

import asyncio
import re
import time
from collections.abc import AsyncIterator
from typing import Annotated, NamedTuple

import structlog
from anyio import to_thread
from fastapi import APIRouter, Depends, Header
from fastapi.responses import StreamingResponse

from api_schemas.errors import LikenessError
from api_schemas.jobs import ENDED, Job, JobEvent
from api_schemas.pages import Page
from service import event_stream
from service.errors import BACKEND_AWAY
from service.keys import Caller, CallerDep
from service.routes.jobs import existing_job, wire_job
from service.routes.paging import After, Limit, page_of
from service.state import ServiceState, StateDep
from service.strict_route import StrictRoute
from storage import job_history, jobs, tables

router = APIRouter(prefix="/v1/fine_tuning/jobs/{job_id}/events", tags=["fine-tuning"], route_class=StrictRoute)
log = structlog.get_logger(__name__)

#: How often a followed job is looked at. Its worker writes at most twice a second.
_FOLLOW_EVERY_SECONDS = 0.25


class _News(NamedTuple):
    """Events behind a number, whether they are all there are, and the job as it was before they were read."""

    events: list[JobEvent]
    are_all: bool
    job: Job


@router.get("")
def list_events(
    job_id: str, caller: CallerDep, state: StateDep, after: After = None, limit: Limit = 20
) -> Page[JobEvent]:
    """What happened to a job, newest first."""
    with state.database.session(caller.team_id) as session:
        row = jobs.get(session, job_id)
        before = None if after is None else _seq_of(after, row)
        rows, has_more = job_history.events(session, job_id, after_seq=before, limit=limit, newest_first=True)
        events = [_wire_event(row) for row in rows]
    return page_of(events, [event.id for event in events], has_more=has_more)


@router.get("/stream", response_class=StreamingResponse, responses=event_stream.RESPONSES)
async def stream_events(
    # Looked up before the stream begins: afterwards it is too late for a 404.
    job_id: Annotated[str, Depends(existing_job)],
    caller: CallerDep,
    state: StateDep,
    last_event_id: Annotated[str | None, Header(pattern=r"^\d{1,9}$")] = None,
) -> StreamingResponse:
    """What happens to a job, as it happens (Server-Sent Events), oldest first.

    `id` is the event's number; send the last one seen as `Last-Event-ID` to go on from there. The stream ends with
    an event named `done` that holds the job; connect again to one that ends without it.
    """
    body = _follow(state, caller, job_id, int(last_event_id or 0))
    return StreamingResponse(body, media_type=event_stream.MEDIA_TYPE, headers=event_stream.HEADERS)


async def _follow(state: ServiceState, caller: Caller, job_id: str, seq: int) -> AsyncIterator[bytes]:
    spoke = time.monotonic()
    while not state.drain.refuses:
        news = await _news(state, caller, job_id, seq)
        if news is not None and news.events:
            yield b"".join(event_stream.event(each.type, each.model_dump_json(), each.seq) for each in news.events)
            seq, spoke = news.events[-1].seq, time.monotonic()
        if news is not None and news.are_all and news.job.status in ENDED:
            yield event_stream.event("done", news.job.model_dump_json(), seq)
            return
        if time.monotonic() - spoke >= state.settings.heartbeat_seconds:
            yield event_stream.comment("nothing new")
            spoke = time.monotonic()
        if news is None or news.are_all:
            await asyncio.sleep(_FOLLOW_EVERY_SECONDS)
    yield event_stream.comment(f"the service stops; connect again with Last-Event-ID: {seq}")


async def _news(state: ServiceState, caller: Caller, job_id: str, seq: int) -> _News | None:
    """What is new of a job. None while the database is away: a stream outlasts that."""
    try:
        return await to_thread.run_sync(_read_news, state, caller, job_id, seq, limiter=state.followers)
    except BACKEND_AWAY as error:
        log.debug("stream_waits", job=job_id, reason=type(error).__name__)
        return None


def _read_news(state: ServiceState, caller: Caller, job_id: str, seq: int) -> _News:
    limit = event_stream.EVENTS_AT_ONCE
    with state.database.session(caller.team_id) as session:
        # The job first: if it has ended by then, no event can come after those read next.
        job = wire_job(jobs.get(session, job_id))
        rows, more = job_history.events(session, job_id, after_seq=seq, limit=limit, newest_first=False)
        return _News([_wire_event(row) for row in rows], not more, job)


def _seq_of(event_id: str, job: tables.Job) -> int:
    prefix, _, seq = event_id.rpartition("-")
    if prefix != _event_prefix(job.id) or not re.fullmatch(r"\d{1,9}", seq):
        raise LikenessError("invalid_cursor", f"'after' names no event of this job: {event_id}", param="after")
    return int(seq)


def _event_prefix(job_id: str) -> str:
    return f"ftevent-{job_id.rpartition('-')[2]}"


def _wire_event(row: tables.JobEvent) -> JobEvent:
    return JobEvent(
        id=f"{_event_prefix(row.job_id)}-{row.seq}",
        created_at=int(row.created_at.timestamp()),
        seq=row.seq,
        level=row.level,
        type=row.type,
        message=row.message,
        data=row.data,
    )
