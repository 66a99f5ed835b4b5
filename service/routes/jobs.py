"""/v1/fine_tuning/jobs: create, follow and cancel trainings."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Mapping
from typing import Annotated

import structlog
from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.concurrency import run_in_threadpool

from api_schemas.defaults import SMALLEST_BATCH, openai_view, resolve
from api_schemas.errors import ErrorDetail, LikenessError
from api_schemas.jobs import (
    ENDED,
    Job,
    JobCreate,
    JobEvent,
    Method,
    Metrics,
    MetricsSummary,
    OpenAIHyperparameters,
    Progress,
    StepMetrics,
)
from api_schemas.pages import Page
from service.errors import BACKEND_AWAY
from service.keys import Caller, CallerDep
from service.model_names import find_model
from service.routes.paging import After, Limit, page_of
from service.state import ServiceState, StateDep
from service.strict_route import StrictRoute
from storage import files, jobs, queue, tables

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["fine-tuning"], route_class=StrictRoute)
log = structlog.get_logger(__name__)

#: How often a followed job is looked at. Its worker writes at most twice a second.
_FOLLOW_EVERY_SECONDS = 0.25
_EVENTS_AT_ONCE = 500


MaxPoints = Annotated[int, Query(ge=4, le=100_000, description="At most so many steps are given.")]


def existing_job(job_id: str, caller: CallerDep, state: StateDep) -> str:
    """The id of a job of the caller's team. Raises LikenessError `not_found`."""
    with state.database.session(caller.team_id) as session:
        return jobs.get(session, job_id).id


@router.post("")
def create_job(request: JobCreate, caller: CallerDep, state: StateDep) -> Job:
    """Fine-tune a model on a file. Everything but `model` and `training_file` has a default."""
    with state.database.session(caller.team_id) as session:
        model = find_model(session, state.settings, request.model)
        training = _usable(request, files.get(session, request.training_file, param="training_file"), "training_file")
        validation = None
        if request.validation_file is not None:
            row = files.get(session, request.validation_file, param="validation_file")
            validation = _usable(request, row, "validation_file")
        _check_batch_size(request, training, validation)
        _check_files(request, training, validation, model.max_seq_length)
        created = jobs.create(session, request, training, validation, max_seq_length=model.max_seq_length)
        answer = _wire(created)
    queue.dispatch_soon(state.database, state.redis)
    return answer


@router.get("")
def list_jobs(
    request: Request, caller: CallerDep, state: StateDep, after: After = None, limit: Limit = 20
) -> Page[Job]:
    """The team's jobs, newest first; `metadata[key]=value` keeps those that carry it."""
    metadata = _metadata_filter(request.query_params)
    with state.database.session(caller.team_id) as session:
        rows, has_more = jobs.list_jobs(session, metadata=metadata, after=after, limit=limit)
        return page_of([_wire(row) for row in rows], [row.id for row in rows], has_more=has_more)


@router.get("/{job_id}")
def get_job(job_id: str, caller: CallerDep, state: StateDep) -> Job:
    """One job: its state, its resolved method, how far it is, and what came of it."""
    with state.database.session(caller.team_id) as session:
        return _wire(jobs.get(session, job_id))


@router.post("/{job_id}/cancel")
def cancel_job(job_id: str, caller: CallerDep, state: StateDep) -> Job:
    """Cancel a job, in whatever state it is; its worker stops within a step."""
    with state.database.session(caller.team_id) as session:
        return _wire(jobs.cancel(session, job_id))


@router.get("/{job_id}/events")
def list_events(
    job_id: str, caller: CallerDep, state: StateDep, after: After = None, limit: Limit = 20
) -> Page[JobEvent]:
    """What happened to a job, newest first."""
    with state.database.session(caller.team_id) as session:
        row = jobs.get(session, job_id)
        before = None if after is None else _seq_of(after, row)
        rows, has_more = jobs.events(session, job_id, after_seq=before, limit=limit, newest_first=True)
        events = [_wire_event(row) for row in rows]
    return page_of(events, [event.id for event in events], has_more=has_more)


@router.get("/{job_id}/events/stream", response_class=EventSourceResponse)
async def stream_events(
    # Looked up before the stream begins: afterwards it is too late for a 404.
    job_id: Annotated[str, Depends(existing_job)],
    caller: CallerDep,
    state: StateDep,
    last_event_id: Annotated[str | None, Header(pattern=r"^\d{1,9}$")] = None,
) -> AsyncIterator[ServerSentEvent]:
    """What happens to a job, as it happens (Server-Sent Events), oldest first.

    `id` is the event's number; send the last one seen as `Last-Event-ID` to go on from there. The stream ends with
    an event named `done` that holds the job.
    """
    seq = int(last_event_id or 0)
    # A client whose stream ends without `done`, because the service stops or its database is away, connects again
    # and goes on.
    while not state.stopping:
        try:
            events, job = await run_in_threadpool(_news, state, caller, job_id, seq)
        except BACKEND_AWAY as error:
            log.warning("stream_ended_early", job=job_id, reason=type(error).__name__)
            return
        for event in events:
            seq = event.seq
            yield ServerSentEvent(raw_data=event.model_dump_json(), event=event.type, id=str(seq))
        if len(events) == _EVENTS_AT_ONCE:
            continue
        if job.status in ENDED:
            yield ServerSentEvent(raw_data=job.model_dump_json(), event="done", id=str(seq))
            return
        await asyncio.sleep(_FOLLOW_EVERY_SECONDS)


@router.get("/{job_id}/metrics")
def get_metrics(job_id: str, caller: CallerDep, state: StateDep, max_points: MaxPoints = 1000) -> Metrics:
    """What the training steps of the newest attempt measured, and rates over all of them.

    Of more than `max_points` steps, the first and the last are given, and those of the highest and of the lowest loss
    of each stretch between them; `summary.steps` says how many there are.
    """
    with state.database.session(caller.team_id) as session:
        job = jobs.get(session, job_id)
        steps = [StepMetrics(**values) for values in jobs.metrics(session, job, max_points=max_points)]
        return Metrics(data=steps, summary=MetricsSummary(**jobs.rates(session, job)._asdict()))


def _usable(request: JobCreate, file: tables.File, param: str) -> tables.File:
    if file.status == "error" and request.method.contrastive.data.as_uploaded:
        raise LikenessError("file_invalid", f"File {file.id} can't be used: {file.status_details}", param=param)
    return file


def _check_batch_size(request: JobCreate, *files: tables.File | None) -> None:
    """Refuse a batch in which labelled texts can't have a positive and a negative at once."""
    asked = (
        ("method.contrastive.hyperparameters.batch_size", request.method.contrastive.hyperparameters.batch_size),
        ("hyperparameters.batch_size", request.hyperparameters.batch_size if request.hyperparameters else "auto"),
    )
    # The first that isn't `auto` is the one that counts.
    param, batch_size = next(((name, size) for name, size in asked if size != "auto"), ("", SMALLEST_BATCH))
    if batch_size < SMALLEST_BATCH and any(file.format == "labels" for file in files if file):
        raise LikenessError(
            "out_of_range",
            f"`{param}` must be at least {SMALLEST_BATCH} for labelled texts: two labels of two texts each.",
            param=param,
        )


def _check_files(
    request: JobCreate, training: tables.File, validation: tables.File | None, max_seq_length: int
) -> None:
    """Refuse files that can't be used together, or not in batches as they would be."""
    if not request.method.contrastive.data.as_uploaded:
        return  # what the files hold when read that way is not known yet
    method = resolve(request.method, request.hyperparameters, rows=training.rows or 0, max_seq_length=max_seq_length)
    batch_size = int(method.contrastive.hyperparameters.batch_size)
    against = files.reason_against(training, validation, batch_size=batch_size)
    if against is not None:
        param, code, message = against
        raise LikenessError(code, message, param=param)


def _metadata_filter(query: Mapping[str, str]) -> dict[str, str]:
    named = ((re.fullmatch(r"metadata\[(.+)\]", name), value) for name, value in query.items())
    return {match[1]: value for match, value in named if match}


def _news(state: ServiceState, caller: Caller, job_id: str, seq: int) -> tuple[list[JobEvent], Job]:
    with state.database.session(caller.team_id) as session:
        # The job first: if it has ended by then, no event can come after those read next.
        job = _wire(jobs.get(session, job_id))
        rows, _ = jobs.events(session, job_id, after_seq=seq, limit=_EVENTS_AT_ONCE, newest_first=False)
        return [_wire_event(row) for row in rows], job


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


def _wire(row: tables.Job) -> Job:
    method = Method(**row.method)
    openai = OpenAIHyperparameters(**row.openai_hyperparameters) if row.openai_hyperparameters else None
    progress = Progress(**row.progress) if row.progress and row.state == "running" else None
    return Job(
        id=row.id,
        created_at=int(row.created_at.timestamp()),
        started_at=int(row.started_at.timestamp()) if row.started_at else None,
        finished_at=int(row.finished_at.timestamp()) if row.finished_at else None,
        estimated_finish=_estimated_finish(progress),
        status=row.state,
        attempt=row.attempt,
        model=row.model,
        fine_tuned_model=row.fine_tuned_model,
        organization_id=row.team_id,
        training_file=row.training_file,
        validation_file=row.validation_file,
        method=method,
        hyperparameters=openai_view(method, openai),
        seed=row.seed,
        suffix=row.suffix,
        metadata=row.job_metadata,
        trained_tokens=row.trained_tokens,
        progress=progress,
        error=ErrorDetail(**row.error) if row.error else None,
    )


def _estimated_finish(progress: Progress | None) -> int | None:
    if progress is None or progress.seconds_left is None:
        return None
    return int(time.time() + progress.seconds_left)
