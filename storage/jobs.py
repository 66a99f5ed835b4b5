"""Fine-tuning jobs: the rows behind /v1/fine_tuning/jobs, and what their owners ask of them."""

from collections.abc import Mapping, Sequence

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from api_schemas.errors import LikenessError
from api_schemas.jobs import ENDED, UNENDED, JobCreate
from api_schemas.models import Reads
from storage import job_files, job_moves, models, preparations
from storage.ids import new_id
from storage.pages import Order, page
from storage.tables import File, Job

# How soon to ask again when there is no room. Nobody knows when a training ends.
_ROOM_SECONDS = "30"


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

    `max_seq_length` is how many tokens of a text the base model reads, None if it `reads` vectors. Raises LikenessError
    `not_found`, or `out_of_range` for a deadline that has passed.
    """
    openai = request.hyperparameters
    _refuse_past(session, request.deadline)
    named = job_files.named(request).values()
    others = session.scalars(select(File).where(File.id.in_(named)).order_by(File.id)).all()
    files = [*{file.id: file for file in (training, validation, *others) if file}.values()]
    for file in files:
        # Locked, so that no verdict falls between this look at the file and the job that waits for it.
        session.refresh(file, with_for_update={"read": True})
        if file.deleted_at is not None:
            raise LikenessError("not_found", f"There is no file {file.id!r}")
    models.hold(session, request.model)
    row = Job(
        id=new_id("ftjob"),
        state="validating_files",
        model=request.model,
        training_file=training.id,
        validation_file=validation.id if validation else None,
        method=request.method.stored(),
        openai_hyperparameters=openai.model_dump() if openai else None,
        seed=request.seed or 0,
        suffix=request.suffix,
        priority=request.priority,
        job_metadata=request.metadata,
        max_runtime_seconds=request.max_runtime_seconds,
        deadline_at=None if request.deadline is None else func.to_timestamp(request.deadline),
        reads=reads,
        max_seq_length=max_seq_length,
    )
    session.add(row)
    session.flush()
    more = len(request.method.contrastive.data.additional_training_files)
    on = training.filename if not more else f"{training.filename} and {more} more"
    job_moves.add_event(session, row, "info", f"Job created to fine-tune {row.model} on {on}")
    preparations.release(session, row, files)
    session.flush()
    session.refresh(row)
    return row


def _refuse_past(session: Session, deadline: int | None) -> None:
    """Refuse a deadline that has passed, by the clock that ends the job."""
    now = session.scalar(select(func.extract("epoch", func.clock_timestamp()))) if deadline is not None else None
    if deadline is not None and now is not None and deadline <= now:
        raise LikenessError(
            "out_of_range",
            f"`deadline` must be a Unix time to come, in seconds: {deadline} was {int(now) - deadline} s ago.",
            param="deadline",
        )


def check_room(session: Session, most: int) -> None:
    """Make sure that the session's team may make a job: nobody else makes one for it until the session ends.

    most: how many jobs it may have that haven't ended. Raises LikenessError `queue_full`.
    """
    _refuse_beyond(session, most)
    # Whoever else makes a job for the team waits here until this one is committed, and then counts it.
    name = f"jobs of {session.info['team']}"
    session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(name, 0))))
    _refuse_beyond(session, most)


def _refuse_beyond(session: Session, most: int) -> None:
    unended = session.scalar(select(func.count(Job.id)).where(Job.state.in_(UNENDED))) or 0
    if unended >= most:
        raise LikenessError(
            "queue_full",
            f"The team has {unended} jobs that haven't ended, and may have {most}. Wait until one ends, or cancel one.",
            headers={"Retry-After": _ROOM_SECONDS},
        )


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
    row = job_moves.locked_unless(session, job_id, "succeeded", "failed")
    if row.state != "cancelled":
        job_moves.end(session, row, "cancelled", "info", "Job cancelled")
        session.flush()
        session.refresh(row)
    return row


def pause(session: Session, job_id: str) -> Job:
    """Pause a job at once, or ask its worker to where it has one. Pausing again changes nothing.

    Raises LikenessError `not_found`, or `job_already_ended`.
    """
    row = job_moves.locked_unless(session, job_id, *ENDED)
    if row.state == "running":
        if not row.pause_asked:
            row.pause_asked = True
            job_moves.add_event(session, row, "info", "Pause asked for; the job pauses after the step that it is at")
    elif row.state != "paused":
        job_moves.pause(session, row, "info", "Job paused")
    return row


def resume(session: Session, job_id: str) -> Job:
    """Queue a paused job again, or take back a pause that was only asked for. Changes nothing for other jobs.

    Raises LikenessError `not_found`, or `job_already_ended`.
    """
    row = job_moves.locked_unless(session, job_id, *ENDED)
    if row.state == "paused" and row.attempt:
        job_moves.next_attempt(session, row)
        job_moves.add_event(session, row, "info", f"Job resumed; it {job_moves.GOES_ON}")
    elif row.state == "paused":
        row.state = "validating_files"
        job_moves.add_event(session, row, "info", "Job resumed; its files are validated and prepared")
        preparations.prepare_again(session, row)
    elif row.pause_asked:
        row.pause_asked = False
        job_moves.add_event(session, row, "info", "Job resumed before it had paused")
    return row
