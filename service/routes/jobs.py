"""/v1/fine_tuning/jobs: create, follow and cancel trainings."""

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response
from sqlalchemy.orm import Session

from api_schemas.defaults import FEWEST_ROWS_TO_SPLIT, SMALLEST_BATCH, batch_size_to_check, openai_view, resolve
from api_schemas.errors import ErrorDetail, LikenessError
from api_schemas.evaluation import Evaluation
from api_schemas.inputs import with_scratch, wrong_file, wrong_option
from api_schemas.jobs import (
    ENDED,
    Checkpoint,
    CheckpointMetrics,
    Interruptions,
    Job,
    JobCreate,
    Metrics,
    MetricsSummary,
    OpenAIHyperparameters,
    Progress,
    StepMetrics,
)
from api_schemas.methods import Method
from api_schemas.pages import Page
from service.idempotency import SendingDep
from service.keys import CallerDep
from service.model_names import NamedModel, find_model
from service.routes.paging import After, Limit, page_of
from service.state import ServiceState, StateDep
from service.strict_route import StrictRoute
from storage import files, job_files, job_history, job_refusals, jobs, scheduling, tables
from storage.checkpoints import JobCheckpoints, Summary

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["fine-tuning"], route_class=StrictRoute)

MaxPoints = Annotated[int, Query(ge=4, le=100_000, description="At most so many steps are given.")]


def existing_job(job_id: str, caller: CallerDep, state: StateDep) -> str:
    """The id of a job of the caller's team. Raises LikenessError `not_found`."""
    with state.database.session(caller.team_id) as session:
        return jobs.get(session, job_id).id


@router.post("", response_model=Job)
def create_job(request: JobCreate, caller: CallerDep, state: StateDep, sending: SendingDep) -> Response:
    """Fine-tune a model on a file. Everything but `model` and `training_file` has a default."""
    _check_split(request)
    # As it was sent: what is left out stays out, though a later version may know more to leave out.
    asked = request.model_dump(mode="json", exclude_unset=True)
    with state.database.session(caller.team_id) as session:
        answer = sending.once(session, asked, lambda: _create(session, state, request))
    state.dispatcher.soon()
    return answer


@router.get("")
def list_jobs(
    request: Request, caller: CallerDep, state: StateDep, after: After = None, limit: Limit = 20
) -> Page[Job]:
    """The team's jobs, newest first; `metadata[key]=value` keeps those that carry it."""
    metadata = _metadata_filter(request.query_params)
    with state.database.session(caller.team_id) as session:
        rows, has_more = jobs.list_jobs(session, metadata=metadata, after=after, limit=limit)
        return page_of(_wire_queued(session, rows), [row.id for row in rows], has_more=has_more)


@router.get("/{job_id}")
def get_job(job_id: str, caller: CallerDep, state: StateDep) -> Job:
    """One job: its state, its resolved method, how far it is, and what came of it."""
    with state.database.session(caller.team_id) as session:
        [answer] = _wire_queued(session, [jobs.get(session, job_id)])
        return answer


@router.post("/{job_id}/cancel")
def cancel_job(job_id: str, caller: CallerDep, state: StateDep) -> Job:
    """Cancel a job, in whatever state it is; its worker stops within a step."""
    with state.database.session(caller.team_id) as session:
        answer = wire_job(jobs.cancel(session, job_id))
    JobCheckpoints(state.artifacts, job_id).remove_all()
    return answer


@router.post("/{job_id}/pause")
def pause_job(job_id: str, caller: CallerDep, state: StateDep) -> Job:
    """Pause a job until it is resumed. One that is `running` stays so until its worker has kept its state and left.

    That takes as long as the step that it is at, and some seconds. Cancelling works in `paused` too.
    """
    with state.database.session(caller.team_id) as session:
        return wire_job(jobs.pause(session, job_id))


@router.post("/{job_id}/resume")
def resume_job(job_id: str, caller: CallerDep, state: StateDep) -> Job:
    """Have a paused job go on from its last checkpoint. Changes nothing for a job that isn't paused."""
    with state.database.session(caller.team_id) as session:
        [answer] = _wire_queued(session, [jobs.resume(session, job_id)])
    state.dispatcher.soon()
    return answer


@router.get("/{job_id}/checkpoints")
def list_checkpoints(
    job_id: Annotated[str, Depends(existing_job)], state: StateDep, after: After = None, limit: Limit = 10
) -> Page[Checkpoint]:
    """What an unfinished job can go on from, newest first; nothing once it has ended."""
    found = [_wire_checkpoint(job_id, summary) for summary in JobCheckpoints(state.artifacts, job_id).summaries()]
    ids = [checkpoint.id for checkpoint in found]
    # One that is gone meanwhile was older than those that are left.
    start = 0 if after is None else ids.index(after) + 1 if after in ids else len(ids)
    rows = found[start : start + limit]
    return page_of(rows, [row.id for row in rows], has_more=start + limit < len(found))


@router.get("/{job_id}/metrics")
def get_metrics(job_id: str, caller: CallerDep, state: StateDep, max_points: MaxPoints = 1000) -> Metrics:
    """What the training steps measured, and rates over all of them; of a step taken again, the last time counts.

    Of more than `max_points` steps, the first and the last are given, and those of the highest and of the lowest loss
    of each stretch between them; `summary.steps` says how many there are.
    """
    with state.database.session(caller.team_id) as session:
        job = jobs.get(session, job_id)
        steps = [StepMetrics(**values) for values in job_history.metrics(session, job, max_points=max_points)]
        return Metrics(data=steps, summary=MetricsSummary(**job_history.rates(session, job)._asdict()))


@router.get("/{job_id}/evaluation")
def get_evaluation(job_id: str, caller: CallerDep, state: StateDep) -> Evaluation:
    """The base and the tuned encoder on rows that were not trained on, and how sure the difference is."""
    with state.database.session(caller.team_id) as session:
        row = jobs.get(session, job_id)
        if row.evaluation is None:
            raise LikenessError("no_evaluation", _reason_for_no_evaluation(row))
        return Evaluation(**row.evaluation)


def _reason_for_no_evaluation(row: tables.Job) -> str:
    if row.state == "succeeded":
        return (
            f"Job {row.id} was not evaluated, for the reason that its events tell: most often its training file has "
            f"under {FEWEST_ROWS_TO_SPLIT} rows. Create it with a `validation_file`, or with "
            "`method.contrastive.data.eval_split`."
        )
    if row.state in ENDED:
        return f"Job {row.id} has not come as far as its evaluation; it ended as {row.state}."
    return f"Job {row.id} is {row.state}; its evaluation is there once it is trained."


def _create(session: Session, state: ServiceState, request: JobCreate) -> Job:
    model = find_model(session, state.settings, request.model)
    # An alias may stand for another model before the job begins.
    request.model = model.name
    _refuse(job_refusals.named_twice(request))
    read = {param: files.get(session, file_id, param=param) for param, file_id in job_files.named(request).items()}
    for param, file in read.items():
        _check_usable(request, file, param)
    _check_model(request, model, read)
    _check_batch_size(request, job_files.with_rows(read).values())
    request.method = with_scratch(request.method, model.name)
    max_seq_length = _max_seq_length(request, model)
    _check_files(request, read, max_seq_length)
    jobs.check_room(session, state.settings.max_jobs_per_team)
    created = jobs.create(
        session,
        request,
        read["training_file"],
        read.get("validation_file"),
        max_seq_length=max_seq_length,
        reads=model.reads,
    )
    return wire_job(created)


def _check_split(request: JobCreate) -> None:
    """Refuse two evaluation splits."""
    if request.validation_file is not None and request.method.contrastive.data.eval_split not in ("auto", 0):
        param = "method.contrastive.data.eval_split"
        message = f"`{param}` must be left out with a `validation_file`, which is what the job is evaluated on."
        raise LikenessError("invalid_value", message, param=param)


def _check_usable(request: JobCreate, file: tables.File, param: str) -> None:
    if file.status == "error" and request.method.contrastive.data.as_uploaded:
        raise LikenessError("file_invalid", f"File {file.id} can't be used: {file.status_details}", param=param)


def _check_model(request: JobCreate, model: NamedModel, read: Mapping[str, tables.File]) -> None:
    """Refuse what the model doesn't read."""
    option = wrong_option(request.method.contrastive, model.name, model.reads)
    if option is not None:
        param = f"method.contrastive.{option[0]}"
        raise LikenessError("invalid_value", f"`{param}` {option[1]}", param=param)
    data = request.method.contrastive.data
    formats = {name: file.format for name, file in read.items()} if data.as_uploaded else {}
    if data.format != "auto":
        formats["method.contrastive.data.format"] = data.format
    for param, data_format in formats.items():
        wrong = wrong_file(model.name, model.reads, data_format) if data_format else None
        if wrong is not None:
            raise LikenessError("invalid_value", wrong, param=param)


def _max_seq_length(request: JobCreate, model: NamedModel) -> int | None:
    """How many tokens of a text the job's encoder reads; None if it reads vectors."""
    scratch = request.method.contrastive.model.scratch
    return model.max_seq_length if scratch is None else scratch.max_seq_length


def _check_batch_size(request: JobCreate, files: Iterable[tables.File]) -> None:
    """Refuse a batch in which labelled texts can't have a positive and a negative at once."""
    asked = (
        ("method.contrastive.hyperparameters.batch_size", request.method.contrastive.hyperparameters.batch_size),
        ("hyperparameters.batch_size", request.hyperparameters.batch_size if request.hyperparameters else "auto"),
    )
    # The first that is a number is the one that counts.
    param, batch_size = next(((name, size) for name, size in asked if isinstance(size, int)), ("", SMALLEST_BATCH))
    if batch_size < SMALLEST_BATCH and any(file.format in ("labels", "vectors") for file in files):
        raise LikenessError(
            "out_of_range",
            f"`{param}` must be at least {SMALLEST_BATCH} for rows with labels: two labels of two rows each.",
            param=param,
        )


def _check_files(request: JobCreate, read: Mapping[str, tables.File], max_seq_length: int | None) -> None:
    """Refuse files that can't be used together, or not in batches as they would be."""
    rows = job_files.training_rows(read)
    method = resolve(request.method, request.hyperparameters, rows=rows, max_seq_length=max_seq_length)
    batch_size = batch_size_to_check(method, rows)
    _refuse(job_refusals.reason_against(read, method.contrastive.data, batch_size=batch_size))


def _refuse(refusal: job_refusals.Refusal | None) -> None:
    if refusal is not None:
        param, code, message = refusal
        raise LikenessError(code, message, param=param)


def _metadata_filter(query: Mapping[str, str]) -> dict[str, str]:
    named = ((re.fullmatch(r"metadata\[(.+)\]", name), value) for name, value in query.items())
    return {match[1]: value for match, value in named if match}


def _wire_checkpoint(job_id: str, summary: Summary) -> Checkpoint:
    return Checkpoint(
        id=f"ftckpt-{job_id.rpartition('-')[2]}-{summary.step}",
        created_at=summary.created_at,
        fine_tuning_job_id=job_id,
        step_number=summary.step,
        metrics=CheckpointMetrics(step=summary.step, train_loss=summary.train_loss),
    )


def _wire_queued(session: Session, rows: Sequence[tables.Job]) -> list[Job]:
    """Jobs as clients see them, with the place of those that are queued."""
    positions = scheduling.positions(session) if any(row.state == "queued" for row in rows) else {}
    return [wire_job(row).model_copy(update={"queue_position": positions.get(row.id)}) for row in rows]


def wire_job(row: tables.Job) -> Job:
    """A job's row as clients see it."""
    method = Method(**row.method)
    openai = OpenAIHyperparameters(**row.openai_hyperparameters) if row.openai_hyperparameters else None
    progress = Progress(**row.progress) if row.progress and row.state in ("running", "paused") else None
    return Job(
        id=row.id,
        created_at=int(row.created_at.timestamp()),
        started_at=int(row.started_at.timestamp()) if row.started_at else None,
        finished_at=int(row.finished_at.timestamp()) if row.finished_at else None,
        estimated_finish=_estimated_finish(progress) if row.state == "running" else None,
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
        priority=row.priority,
        suffix=row.suffix,
        metadata=row.job_metadata,
        trained_tokens=row.trained_tokens,
        max_runtime_seconds=row.max_runtime_seconds,
        deadline=int(row.deadline_at.timestamp()) if row.deadline_at else None,
        interruptions=Interruptions(crashes=row.crashes, out_of_memory=row.oom_kills, preemptions=row.preemptions),
        progress=progress,
        error=ErrorDetail(**row.error) if row.error else None,
    )


def _estimated_finish(progress: Progress | None) -> int | None:
    if progress is None or progress.seconds_left is None:
        return None
    return int(time.time() + progress.seconds_left)
