"""Fine-tuning jobs: the rows behind /v1/fine_tuning/jobs, and the only moves a job's state may make.

    validating_files → queued → running → succeeded | failed | cancelled

A move is a compare-and-set on (state, attempt) and writes its event in the same transaction. Whoever writes
on behalf of an attempt names it; when it is no longer the job's running attempt, the write is refused with
StaleAttempt.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from sqlalchemy import ColumnElement, Double, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from api_schemas.defaults import resolve
from api_schemas.errors import LikenessError
from api_schemas.jobs import ENDED, JobCreate, Method, OpenAIHyperparameters
from storage import models, queue
from storage.files import reason_against
from storage.ids import new_id
from storage.pages import Order, page
from storage.tables import File, Job, JobEvent, JobMetrics, Model

#: How long a worker may be silent before its job is given to another.
LEASE_SECONDS = 45.0
#: How often a job's worker may die before the job is failed.
MOST_CRASHES = 3

Level = Literal["info", "warn", "error"]
_NOW = func.clock_timestamp()
_IN_PREPARATION = (Job.state == "validating_files", Job.validated)


class StaleAttempt(Exception):  # noqa: N818 — it is a state of affairs, not somebody's error
    """The attempt is no longer the one that runs: the job was cancelled, or given to another worker."""


# --- what the API asks ---


def create(
    session: Session, request: JobCreate, training: File, validation: File | None, *, max_seq_length: int
) -> Job:
    """A new job, queued if its files are validated, else waiting for them.

    `max_seq_length` is what the base model reads, in tokens.
    """
    openai = request.hyperparameters
    files = [file for file in (training, validation) if file]
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
        max_seq_length=max_seq_length,
    )
    session.add(row)
    session.flush()
    _add_event(session, row, "info", f"Job created to fine-tune {row.model} on {training.filename}")
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
    row = _locked(session, job_id)
    if row is None:
        raise LikenessError("not_found", f"There is no fine-tuning job {job_id!r}")
    if row.state in ("succeeded", "failed"):
        raise LikenessError(
            "job_already_ended", f"Job {job_id} has already {row.state}.", headers={"x-should-retry": "false"}
        )
    if row.state != "cancelled":
        _end(session, row, "cancelled", "info", "Job cancelled")
        session.flush()
        session.refresh(row)
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
    """Steps of the job's newest attempt, in order: all of them, or at most `max_points`, of 4 or more.

    Then the first and the last are among them, and of each of as many equal stretches as there is room for, the steps
    of the lowest and of the highest loss. They are chosen by the database: no more than these are read into memory.
    """
    of_attempt = JobMetrics.job_id == job.id, JobMetrics.attempt == job.attempt
    first, last, count = session.execute(
        select(func.min(JobMetrics.step), func.max(JobMetrics.step), func.count()).where(*of_attempt)
    ).one()
    steps = select(JobMetrics.values).where(*of_attempt).order_by(JobMetrics.step)
    if count > max_points:
        stretches = (max_points - 2) // 2
        stretch = func.div((JobMetrics.step - first) * stretches, last - first + 1)
        loss = JobMetrics.values["loss"].as_float()
        ranked = (
            select(
                JobMetrics.step,
                func.row_number().over(partition_by=stretch, order_by=(loss, JobMetrics.step)).label("lowest"),
                func.row_number().over(partition_by=stretch, order_by=(loss.desc(), JobMetrics.step)).label("highest"),
            )
            .where(*of_attempt)
            .subquery()
        )
        extremes = select(ranked.c.step).where(or_(ranked.c.lowest == 1, ranked.c.highest == 1))
        steps = steps.where(or_(JobMetrics.step.in_((first, last)), JobMetrics.step.in_(extremes)))
    return session.scalars(steps).all()


class Rates(NamedTuple):
    """Over all steps of the job's newest attempt: what was trained on over the seconds it took; None without any."""

    steps: int
    pairs_per_second: float | None
    tokens_per_second: float | None


def rates(session: Session, job: Job) -> Rates:
    """How many steps there are, and how fast they were together."""
    seconds = JobMetrics.values["seconds"].as_float()
    whole = func.nullif(func.sum(seconds), 0.0)
    pairs, tokens = (
        func.sum(JobMetrics.values[name].as_float() * seconds, type_=Double()) / whole
        for name in ("pairs_per_second", "tokens_per_second")
    )
    of_attempt = JobMetrics.job_id == job.id, JobMetrics.attempt == job.attempt
    row: Any = session.execute(select(func.count(), pairs, tokens).where(*of_attempt)).one()
    return Rates(*row)


# --- what validation does ---


def release_waiting_for(session: Session, file_id: str) -> None:
    """Queue the jobs that waited for this file's validation, or fail them when it is unusable."""
    reads_it = or_(Job.training_file == file_id, Job.validation_file == file_id)
    waits_for_it = select(Job).where(reads_it, Job.state == "validating_files", ~Job.validated)
    # In one order for everybody: two validations that release the same jobs must not wait for each other.
    for row in session.scalars(waits_for_it.order_by(Job.id).with_for_update()).all():
        ids = [row.training_file, *([row.validation_file] if row.validation_file else [])]
        _release(session, row, session.scalars(select(File).where(File.id.in_(ids))).all())


# --- what preparation does ---


def waiting_for_preparation(session: Session) -> Sequence[str]:
    """Ids of the jobs whose files are validated and not yet prepared."""
    return session.scalars(select(Job.id).where(*_IN_PREPARATION).order_by(Job.created_at)).all()


def in_preparation(session: Session, job_id: str) -> Job | None:
    """The job, while its files are being prepared. None once that is over: it is cancelled, or prepared already."""
    return session.scalar(select(Job).where(Job.id == job_id, *_IN_PREPARATION))


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


def renew(session: Session, job_id: str, attempt: int, worker_id: str) -> None:
    """Prolong the lease. Raises StaleAttempt when it is lost."""
    renewed = session.execute(
        update(Job)
        .where(*_is_running(job_id, attempt), Job.worker_id == worker_id)
        .values(lease_expires_at=_lease_end())
        .returning(Job.id)
    )
    if renewed.first() is None:
        raise StaleAttempt(job_id, attempt)


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


def succeed(
    session: Session,
    job_id: str,
    attempt: int,
    *,
    base_model: str,
    weights_sha256: str,
    dimension: int,
    max_seq_length: int,
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


def requeue(session: Session, job_id: str, attempt: int, message: str) -> None:
    """Give the job back to the queue because its worker is going away. Raises StaleAttempt."""
    _requeue(session, running(session, job_id, attempt), message)


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
        against = _reason_against(row, files) if as_uploaded else None
        if against is not None:
            _fail(session, row, *against)
            return
        row.validated = True
        queue.put(session, row.team_id, queue.PREPARE, [row.id])
        _add_event(session, row, "info", "Files validated; they are prepared for training next")


def _reason_against(row: Job, files: Sequence[File]) -> tuple[str, str] | None:
    """A code and a sentence, if the reports on the files say that they can't be trained on together."""
    training = next(file for file in files if file.id == row.training_file)
    validation = next((file for file in files if file.id == row.validation_file), None)
    openai = OpenAIHyperparameters(**row.openai_hyperparameters) if row.openai_hyperparameters else None
    method = resolve(Method(**row.method), openai, rows=training.rows or 0, max_seq_length=row.max_seq_length)
    batch_size = int(method.contrastive.hyperparameters.batch_size)
    against = reason_against(training, validation, batch_size=batch_size)
    return against[1:] if against is not None else None


def _next_attempt(session: Session, row: Job) -> None:
    row.state = "queued"
    row.attempt = (row.attempt or 0) + 1
    row.worker_id = None
    row.lease_expires_at = None
    row.progress = None
    queue.put(session, row.team_id, queue.TRAIN, [row.id, row.attempt])


def _requeue(session: Session, row: Job, message: str) -> None:
    _next_attempt(session, row)
    _add_event(session, row, "warn", message)


def _crashed(session: Session, row: Job, what: str) -> None:
    row.crashes += 1
    if row.crashes >= MOST_CRASHES:
        _fail(
            session, row, "worker_lost",
            f"{what}. The job is not tried again: that was crash {row.crashes} of the {MOST_CRASHES} that a job may "
            "have. The worker's log says more; often memory ran out: try a smaller micro_batch_size or max_seq_length.",
        )  # fmt: skip
    else:
        _requeue(session, row, f"{what}; the job is queued again and begins at step 0")


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
