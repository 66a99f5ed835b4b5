"""Fine-tuning jobs: the rows behind /v1/fine_tuning/jobs, and the only moves a job's state may make.

    validating_files → queued → running → succeeded | failed | cancelled
           ↕              ↕        ↕
                        paused

A move is a compare-and-set on (state, attempt) and writes its event in the same transaction. Whoever writes
on behalf of an attempt names it; when it is no longer the job's running attempt, the write is refused with
StaleAttempt.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from sqlalchemy import CTE, ColumnElement, Double, func, or_, select, update
from sqlalchemy.dialects.postgresql import distinct_on, insert
from sqlalchemy.orm import Session

from api_schemas.defaults import resolve
from api_schemas.errors import LikenessError
from api_schemas.inputs import wrong_file
from api_schemas.jobs import ENDED, JobCreate, Method, OpenAIHyperparameters
from api_schemas.models import Reads
from storage import job_files, job_refusals, models, queue
from storage.ids import new_id
from storage.pages import Order, page
from storage.tables import File, Job, JobEvent, JobMetrics, Model

#: How long a worker may be silent before its job is given to another.
LEASE_SECONDS = 45.0
#: How often a job's worker may die before the job is failed.
MOST_CRASHES = 3

Level = Literal["info", "warn", "error"]
_NOW = func.clock_timestamp()
_GOES_ON = "goes on from its last checkpoint"
_IN_PREPARATION = (Job.state == "validating_files", Job.validated)


class StaleAttempt(Exception):  # noqa: N818 — it is a state of affairs, not somebody's error
    """The attempt is no longer the one that runs: the job was cancelled, or given to another worker."""


# --- what the API asks ---


def create(
    session: Session,
    request: JobCreate,
    training: File,
    validation: File | None,
    *,
    max_seq_length: int | None,
    reads: Reads = "texts",
) -> Job:
    """A new job, queued if its files are validated, else waiting for them.

    `max_seq_length` is how many tokens of a text the base model reads, None if it `reads` vectors.
    """
    openai = request.hyperparameters
    named = job_files.named(request).values()
    others = session.scalars(select(File).where(File.id.in_(named)).order_by(File.id)).all()
    files = [*{file.id: file for file in (training, validation, *others) if file}.values()]
    for file in files:
        # Locked, so that no verdict falls between this look at the file and the job that waits for it.
        session.refresh(file, with_for_update={"read": True})
        if file.deleted_at is not None:
            raise LikenessError("not_found", f"There is no file {file.id!r}")
    row = Job(
        id=new_id("ftjob"),
        state="validating_files",
        model=request.model,
        training_file=training.id,
        validation_file=validation.id if validation else None,
        method=request.method.model_dump(),
        openai_hyperparameters=openai.model_dump() if openai else None,
        seed=request.seed or 0,
        suffix=request.suffix,
        job_metadata=request.metadata,
        reads=reads,
        max_seq_length=max_seq_length,
    )
    session.add(row)
    session.flush()
    more = len(request.method.contrastive.data.additional_training_files)
    on = training.filename if not more else f"{training.filename} and {more} more"
    _add_event(session, row, "info", f"Job created to fine-tune {row.model} on {on}")
    _release(session, row, files)
    session.flush()
    session.refresh(row)
    return row


def get(session: Session, job_id: str) -> Job:
    """A job by id. Raises LikenessError `not_found`."""
    row = session.scalar(select(Job).where(Job.id == job_id))
    if row is None:
        raise LikenessError("not_found", f"There is no fine-tuning job {job_id!r}")
    return row


def list_jobs(
    session: Session, *, metadata: Mapping[str, str], after: str | None, limit: int, order: Order = "desc"
) -> tuple[Sequence[Job], bool]:
    """A page of the team's jobs that carry all of `metadata`, and whether more follow."""
    criteria = [Job.job_metadata.contains(dict(metadata))] if metadata else []
    return page(session, Job, *criteria, after=after, limit=limit, order=order)


def cancel(session: Session, job_id: str) -> Job:
    """Cancel a job at once: from now on its attempt can write nothing more. Cancelling again changes nothing.

    Raises LikenessError `not_found`, or `job_already_ended` for a job that succeeded or failed.
    """
    row = _locked_unless(session, job_id, "succeeded", "failed")
    if row.state != "cancelled":
        _end(session, row, "cancelled", "info", "Job cancelled")
        session.flush()
        session.refresh(row)
    return row


def pause(session: Session, job_id: str) -> Job:
    """Pause a job at once, or ask its worker to where it has one. Pausing again changes nothing.

    Raises LikenessError `not_found`, or `job_already_ended`.
    """
    row = _locked_unless(session, job_id, *ENDED)
    if row.state == "running":
        if not row.pause_asked:
            row.pause_asked = True
            _add_event(session, row, "info", "Pause asked for; the job pauses after the step that it is at")
    elif row.state != "paused":
        _pause(session, row, "info", "Job paused")
    return row


def resume(session: Session, job_id: str) -> Job:
    """Queue a paused job again, or take back a pause that was only asked for. Changes nothing for other jobs.

    Raises LikenessError `not_found`, or `job_already_ended`.
    """
    row = _locked_unless(session, job_id, *ENDED)
    if row.state == "paused" and row.attempt:
        _next_attempt(session, row)
        _add_event(session, row, "info", f"Job resumed; it {_GOES_ON}")
    elif row.state == "paused":
        row.state = "validating_files"
        _add_event(session, row, "info", "Job resumed; its files are validated and prepared")
        _prepare_again(session, row)
    elif row.pause_asked:
        row.pause_asked = False
        _add_event(session, row, "info", "Job resumed before it had paused")
    return row


def events(
    session: Session, job_id: str, *, after_seq: int | None, limit: int, newest_first: bool
) -> tuple[Sequence[JobEvent], bool]:
    """Events behind number `after_seq` in the order asked for, and whether more follow."""
    query = select(JobEvent).where(JobEvent.job_id == job_id)
    if after_seq is not None:
        query = query.where(JobEvent.seq < after_seq if newest_first else JobEvent.seq > after_seq)
    query = query.order_by(JobEvent.seq.desc() if newest_first else JobEvent.seq)
    rows = session.scalars(query.limit(limit + 1)).all()
    return rows[:limit], len(rows) > limit


def metrics(session: Session, job: Job, *, max_points: int) -> Sequence[dict[str, Any]]:
    """The job's steps, in order: all of them, or at most `max_points`, of 4 or more.

    Then the first and the last are among them, and of each of as many equal stretches as there is room for, the steps
    of the lowest and of the highest loss. They are chosen by the database: no more than these are read into memory.
    """
    measured = _measured(job).c
    first, last, count = session.execute(
        select(func.min(measured.step), func.max(measured.step), func.count(measured.step))
    ).one()
    steps = select(measured["values"]).order_by(measured.step)
    if count > max_points:
        stretches = (max_points - 2) // 2
        stretch = func.div((measured.step - first) * stretches, last - first + 1)
        loss = measured["values"]["loss"].as_float()
        ranked = select(
            measured.step,
            func.row_number().over(partition_by=stretch, order_by=(loss, measured.step)).label("lowest"),
            func.row_number().over(partition_by=stretch, order_by=(loss.desc(), measured.step)).label("highest"),
        ).subquery()
        extremes = select(ranked.c.step).where(or_(ranked.c.lowest == 1, ranked.c.highest == 1))
        steps = steps.where(or_(measured.step.in_((first, last)), measured.step.in_(extremes)))
    return session.scalars(steps).all()


def _measured(job: Job) -> CTE:
    """The job's steps and their values: of one that was taken again, what its newest attempt measured."""
    return (
        select(JobMetrics.step, JobMetrics.values.label("values"))
        .where(JobMetrics.job_id == job.id)
        .ext(distinct_on(JobMetrics.step))
        .order_by(JobMetrics.step, JobMetrics.attempt.desc())
        .cte()
    )


class Rates(NamedTuple):
    """Over all steps of the job: what was trained on over the seconds it took; None without any."""

    steps: int
    pairs_per_second: float | None
    tokens_per_second: float | None


def rates(session: Session, job: Job) -> Rates:
    """How many steps there are, and how fast they were together."""
    values = _measured(job).c["values"]
    seconds = values["seconds"].as_float()
    whole = func.nullif(func.sum(seconds), 0.0)
    pairs, tokens = (
        func.sum(values[name].as_float() * seconds, type_=Double()) / whole
        for name in ("pairs_per_second", "tokens_per_second")
    )
    row: Any = session.execute(select(func.count(values), pairs, tokens)).one()
    return Rates(*row)


# --- what validation does ---


def release_waiting_for(session: Session, file_id: str) -> None:
    """Queue the jobs that waited for this file's validation, or fail them when it is unusable."""
    waits_for_it = select(Job).where(job_files.reads(file_id), Job.state == "validating_files", ~Job.validated)
    # In one order for everybody: two validations that release the same jobs must not wait for each other.
    for row in session.scalars(waits_for_it.order_by(Job.id).with_for_update()).all():
        ids = job_files.named(row).values()
        _release(session, row, session.scalars(select(File).where(File.id.in_(ids))).all())


# --- what preparation does ---


def waiting_for_preparation(session: Session) -> Sequence[str]:
    """Ids of the jobs whose files are validated and not yet prepared."""
    return session.scalars(select(Job.id).where(*_IN_PREPARATION).order_by(Job.created_at)).all()


def in_preparation(session: Session, job_id: str) -> Job | None:
    """The job, while its files are being prepared. None once that is over: it is cancelled, or prepared already."""
    return session.scalar(select(Job).where(Job.id == job_id, *_IN_PREPARATION))


def begin_preparation(session: Session, job_id: str) -> Job | None:
    """Count another beginning of a preparation. None once that is over, as it is if too many have died: it fails."""
    row = _locked_in_preparation(session, job_id)
    if row is not None and row.preparations_begun >= MOST_CRASHES:
        _fail(
            session, row, "worker_lost",
            f"Preparing the files has ended {MOST_CRASHES} times without a result and is not tried again. The worker's "
            "log says more; most often its memory ran out: split the files, or convert them to JSON Lines.",
        )  # fmt: skip
        return None
    if row is not None:
        row.preparations_begun += 1
    return row


def give_back_preparation(session: Session, job_id: str) -> None:
    """Take back the last beginning, because its worker is going away. Does nothing once preparation is over."""
    row = _locked_in_preparation(session, job_id)
    if row is not None and row.preparations_begun > 0:
        row.preparations_begun -= 1
        _add_event(session, row, "warn", "The worker is shutting down; the files are prepared by another")


def record_preparation(session: Session, job_id: str, message: str, *, level: Level = "info") -> None:
    """Write an event of a preparation. Does nothing once that is over."""
    row = _locked_in_preparation(session, job_id)
    if row is not None:
        _add_event(session, row, level, message)


def prepared(session: Session, job_id: str, method: Method) -> None:
    """Queue the job for its first attempt, with a method without `auto`. Does nothing once preparation is over."""
    row = _locked_in_preparation(session, job_id)
    if row is not None:
        row.method = method.model_dump()
        _next_attempt(session, row)
        _add_event(session, row, "info", "Files prepared; job queued")


def not_preparable(session: Session, job_id: str, code: str, message: str) -> None:
    """Fail the job, with a reason a person can act on. Does nothing once preparation is over."""
    row = _locked_in_preparation(session, job_id)
    if row is not None:
        _fail(session, row, code, message)


# --- what a worker does for an attempt ---


def start(session: Session, job_id: str, attempt: int, worker_id: str) -> Job | None:
    """Take the lease of a queued attempt. None when it is taken, cancelled, or of an old delivery."""
    row = _locked(session, job_id)
    if row is None or row.state != "queued" or row.attempt != attempt:
        return None
    row.state = "running"
    row.worker_id = worker_id
    row.lease_expires_at = _lease_end()
    row.started_at = func.coalesce(Job.started_at, _NOW)
    again = f", attempt {attempt}" if attempt > 1 else ""
    _add_event(session, row, "info", f"Training started{again}")
    session.flush()
    session.refresh(row)
    return row


def renew(session: Session, job_id: str, attempt: int, worker_id: str) -> bool:
    """Prolong the lease. Returns whether the job was asked to pause. Raises StaleAttempt when the lease is lost."""
    renewed = session.execute(
        update(Job)
        .where(*_is_running(job_id, attempt), Job.worker_id == worker_id)
        .values(lease_expires_at=_lease_end())
        .returning(Job.pause_asked)
    ).first()
    if renewed is None:
        raise StaleAttempt(job_id, attempt)
    return bool(renewed.pause_asked)


def running(session: Session, job_id: str, attempt: int) -> Job:
    """The job, locked, while `attempt` is its running attempt. Raises StaleAttempt."""
    row = _locked(session, job_id)
    if row is None or row.state != "running" or row.attempt != attempt:
        raise StaleAttempt(job_id, attempt)
    return row


def record(session: Session, job_id: str, attempt: int, message: str, *, level: Level = "info") -> None:
    """Write an event of the running attempt. Raises StaleAttempt."""
    _add_event(session, running(session, job_id, attempt), level, message)


def resolved(session: Session, job_id: str, attempt: int, hyperparameters: Mapping[str, Any]) -> None:
    """Echo what was still `auto` when the attempt began, by name. Raises StaleAttempt."""
    row = running(session, job_id, attempt)
    contrastive = Method(**row.method).contrastive
    echoed = contrastive.hyperparameters.model_copy(update=dict(hyperparameters))
    row.method = Method(contrastive=contrastive.model_copy(update={"hyperparameters": echoed})).model_dump()


def record_steps(
    session: Session,
    job_id: str,
    attempt: int,
    steps: Sequence[dict[str, Any]],
    *,
    progress: dict[str, Any],
    message: str,
    news: dict[str, Any],
) -> None:
    """Write what steps measured, how far the job is, and one event that sums them up. Raises StaleAttempt.

    Writing the same steps again changes nothing: the answer to the first commit may have been lost.
    """
    row = running(session, job_id, attempt)
    values = [
        {"team_id": row.team_id, "job_id": job_id, "attempt": attempt, "step": step["step"], "values": step}
        for step in steps
    ]
    written = session.scalars(insert(JobMetrics).on_conflict_do_nothing().returning(JobMetrics.step), values)
    if written.first() is not None:
        row.progress = progress
        _add_event(session, row, "info", message, metrics=news)


def record_evaluation(session: Session, job_id: str, attempt: int, evaluation: dict[str, Any], message: str) -> None:
    """Keep what the API answers for the evaluation, and write an event that sums it up. Raises StaleAttempt.

    Writing the same again changes nothing: the answer to the first commit may have been lost.
    """
    row = running(session, job_id, attempt)
    if row.evaluation != evaluation:
        row.evaluation = evaluation
        _add_event(session, row, "info", message)


def succeed(
    session: Session,
    job_id: str,
    attempt: int,
    *,
    base_model: str,
    weights_sha256: str,
    dimension: int,
    max_seq_length: int | None,
    trained_tokens: int,
) -> Model:
    """End the attempt well: the model's row and the job's end are one commit. Raises StaleAttempt."""
    row = running(session, job_id, attempt)
    model = models.add(
        session,
        row,
        base_model=base_model,
        weights_sha256=weights_sha256,
        dimension=dimension,
        max_seq_length=max_seq_length,
    )
    row.fine_tuned_model = model.id
    row.trained_tokens = trained_tokens
    _end(session, row, "succeeded", "info", f"New fine-tuned model created: {model.id}")
    return model


def fail(session: Session, job_id: str, attempt: int, code: str, message: str) -> None:
    """End the attempt and the job, with a reason a person can act on. Raises StaleAttempt."""
    _fail(session, running(session, job_id, attempt), code, message)


def requeue(session: Session, job_id: str, attempt: int, why: str) -> None:
    """Give the job back: to the queue, because its worker is going away, or paused if asked. Raises StaleAttempt."""
    row = running(session, job_id, attempt)
    if row.pause_asked:
        _pause(session, row, "info", "Job paused")
    else:
        _requeue(session, row, why)


def pause_running(session: Session, job_id: str, attempt: int, message: str) -> None:
    """End the attempt, and pause the job until somebody has done what the message asks for. Raises StaleAttempt."""
    _pause(session, running(session, job_id, attempt), "warn", message)


def crashed(session: Session, job_id: str, attempt: int, what: str) -> None:
    """The attempt's process died: try again, or fail the job as `worker_lost`. Raises StaleAttempt."""
    _crashed(session, running(session, job_id, attempt), what)


# --- what the reconciler does ---


def rescue_expired(session: Session) -> int:
    """Give every job whose lease ran out to another worker, or fail it. Returns how many there were."""
    expired = session.scalars(
        select(Job).where(Job.state == "running", Job.lease_expires_at < _NOW).with_for_update(skip_locked=True)
    ).all()
    for row in expired:
        _crashed(session, row, f"The worker {row.worker_id} fell silent")
    return len(expired)


def queued(session: Session) -> Sequence[tuple[str, int]]:
    """(job id, attempt) of every job that ought to be in the queue."""
    rows = session.execute(select(Job.id, Job.attempt).where(Job.state == "queued").order_by(Job.created_at))
    return [(row.id, row.attempt) for row in rows]


# --- moves ---


def _locked(session: Session, job_id: str) -> Job | None:
    return session.scalar(
        select(Job).where(Job.id == job_id).with_for_update().execution_options(populate_existing=True)
    )


def _locked_unless(session: Session, job_id: str, *states: str) -> Job:
    """The job. Raises LikenessError `not_found`, or `job_already_ended` for a job that ended in one of the states."""
    row = _locked(session, job_id)
    if row is None:
        raise LikenessError("not_found", f"There is no fine-tuning job {job_id!r}")
    if row.state in states:
        was = "was cancelled" if row.state == "cancelled" else f"has already {row.state}"
        raise LikenessError("job_already_ended", f"Job {job_id} {was}.", headers={"x-should-retry": "false"})
    return row


def _locked_in_preparation(session: Session, job_id: str) -> Job | None:
    row = _locked(session, job_id)
    return row if row is not None and row.state == "validating_files" and row.validated else None


def _is_running(job_id: str, attempt: int) -> tuple[ColumnElement[bool], ...]:
    return (Job.id == job_id, Job.state == "running", Job.attempt == attempt)


def _lease_end() -> ColumnElement[Any]:
    return _NOW + func.make_interval(0, 0, 0, 0, 0, 0, LEASE_SECONDS)


def _release(session: Session, row: Job, files: Sequence[File]) -> None:
    """Have the files of a job prepared once all are validated, or fail it when one is unusable.

    What a job says of how its files are read may make rows of what were none when they were uploaded.
    """
    as_uploaded = Method(**row.method).contrastive.data.as_uploaded
    unusable = next((file for file in files if file.status == "error"), None)
    if unusable is not None and as_uploaded:
        _fail(session, row, "file_invalid", f"{unusable.filename}: {unusable.status_details}")
    elif all(file.status != "uploaded" for file in files):
        against = _reason_against(row, files)
        if against is not None:
            _fail(session, row, *against)
            return
        row.validated = True
        queue.put(session, row.team_id, queue.PREPARE, [row.id])
        _add_event(session, row, "info", "Files validated; they are prepared for training next")


def _reason_against(row: Job, files: Sequence[File]) -> tuple[str, str] | None:
    """A code and a sentence, if the reports on the files say that they can't be trained on together."""
    by_id = {file.id: file for file in files}
    read = {param: by_id[file_id] for param, file_id in job_files.named(row).items()}
    for file in read.values():
        wrong = wrong_file(row.model, row.reads, file.format) if file.format else None
        if wrong is not None:
            return "invalid_value", f"{file.filename}: {wrong}"
    openai = OpenAIHyperparameters(**row.openai_hyperparameters) if row.openai_hyperparameters else None
    method = resolve(
        Method(**row.method), openai, rows=job_files.training_rows(read), max_seq_length=row.max_seq_length
    )
    batch_size = int(method.contrastive.hyperparameters.batch_size)
    against = job_refusals.reason_against(read, method.contrastive.data, batch_size=batch_size)
    return against[1:] if against is not None else None


def _next_attempt(session: Session, row: Job) -> None:
    row.state = "queued"
    row.attempt = (row.attempt or 0) + 1
    row.worker_id = None
    row.lease_expires_at = None
    row.progress = None
    row.pause_asked = False
    row.evaluation = None
    queue.put(session, row.team_id, queue.TRAIN, [row.id, row.attempt])


def _requeue(session: Session, row: Job, why: str) -> None:
    if row.pause_asked:
        _pause(session, row, "warn", f"{why}; the job is paused, as was asked")
        return
    _next_attempt(session, row)
    _add_event(session, row, "warn", f"{why}; the job is queued again, and {_GOES_ON}")


def _pause(session: Session, row: Job, level: Level, message: str) -> None:
    row.state = "paused"
    row.pause_asked = False
    row.worker_id = None
    row.lease_expires_at = None
    _add_event(session, row, level, f"{message}. POST /v1/fine_tuning/jobs/{row.id}/resume goes on with it")


def _prepare_again(session: Session, row: Job) -> None:
    """Have the files of a job prepared that was paused before they were, or wait for their validation."""
    if row.validated:
        queue.put(session, row.team_id, queue.PREPARE, [row.id])
        return
    ids = job_files.named(row).values()
    # Locked, so that no verdict falls between this look at the files and the job that waits for them.
    files = select(File).where(File.id.in_(ids)).order_by(File.id).with_for_update(read=True)
    _release(session, row, session.scalars(files.execution_options(populate_existing=True)).all())


def _crashed(session: Session, row: Job, what: str) -> None:
    row.crashes += 1
    if row.crashes >= MOST_CRASHES:
        _fail(
            session, row, "worker_lost",
            f"{what}. The job is not tried again: that was crash {row.crashes} of the {MOST_CRASHES} that a job may "
            "have. The worker's log says more; often memory ran out: try a smaller micro_batch_size or max_seq_length.",
        )  # fmt: skip
    else:
        _requeue(session, row, what)


def _fail(session: Session, row: Job, code: str, message: str) -> None:
    row.error = LikenessError(code, message).body()["error"]
    _end(session, row, "failed", "error", message)


def _end(session: Session, row: Job, state: str, level: Level, message: str) -> None:
    assert state in ENDED  # noqa: S101 — a slip here would make a terminal state out of a typing error
    row.state = state
    row.finished_at = _NOW
    row.lease_expires_at = None
    _add_event(session, row, level, message)


def _add_event(
    session: Session, row: Job, level: Level, message: str, *, metrics: dict[str, Any] | None = None
) -> None:
    # Whoever adds an event holds the job's row lock (or has just made the row), so numbers have no gaps.
    row.last_seq = (row.last_seq or 0) + 1
    session.add(
        JobEvent(
            job_id=row.id,
            seq=row.last_seq,
            team_id=row.team_id,
            attempt=row.attempt or 0,
            level=level,
            type="message" if metrics is None else "metrics",
            message=message,
            data=metrics,
        )
    )
