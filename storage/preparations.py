"""What comes before a job's first attempt: its files are validated, then prepared by a worker."""

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from api_schemas.defaults import batch_size_to_check, resolve
from api_schemas.inputs import wrong_file
from api_schemas.jobs import OpenAIHyperparameters
from api_schemas.methods import Method
from storage import job_files, job_moves, job_refusals, queue
from storage.job_moves import MOST_CRASHES, Level
from storage.tables import File, Job

#: Which jobs' files are validated and not yet prepared.
IN_PREPARATION = (Job.state == "validating_files", Job.validated)


def release_waiting_for(session: Session, file_id: str) -> None:
    """Queue the jobs that waited for this file's validation, or fail them when it is unusable."""
    waits_for_it = select(Job).where(job_files.reads(file_id), Job.state == "validating_files", ~Job.validated)
    # In one order for everybody: two validations that release the same jobs must not wait for each other.
    for row in session.scalars(waits_for_it.order_by(Job.id).with_for_update()).all():
        ids = job_files.named(row).values()
        release(session, row, session.scalars(select(File).where(File.id.in_(ids))).all())


def unprepared(session: Session, job_id: str) -> Job | None:
    """The job, while its files are being prepared. None once that is over: it is cancelled, or prepared already."""
    return session.scalar(select(Job).where(Job.id == job_id, *IN_PREPARATION))


def is_under_way(session: Session, job_id: str) -> bool:
    """Whether the job's files are still to be prepared."""
    return unprepared(session, job_id) is not None


def begin(session: Session, job_id: str) -> Job | None:
    """Count another beginning of a preparation. None once that is over, as it is if too many have died: it fails."""
    row = _locked_in_preparation(session, job_id)
    if row is not None and row.preparations_begun >= MOST_CRASHES:
        job_moves.fail(
            session, row, "worker_lost",
            f"Preparing the files has ended {MOST_CRASHES} times without a result and is not tried again. The worker's "
            "log says more; most often its memory ran out: split the files, or convert them to JSON Lines.",
        )  # fmt: skip
        return None
    if row is not None:
        row.preparations_begun += 1
    return row


def give_back(session: Session, job_id: str, *, begun: int | None = None) -> None:
    """Take back the last beginning, because its worker is going away. Does nothing once preparation is over.

    begun: which one it was. Giving that back again changes nothing: the answer to the first commit may have been lost.
    """
    row = _locked_in_preparation(session, job_id)
    if row is not None and row.preparations_begun > 0 and begun in (None, row.preparations_begun):
        row.preparations_begun -= 1
        job_moves.add_event(session, row, "warn", "The worker is shutting down; the files are prepared by another")


def pause(session: Session, job_id: str, message: str) -> None:
    """Pause the job until somebody has done what the message asks for; this beginning doesn't count.

    Does nothing once preparation is over.
    """
    row = _locked_in_preparation(session, job_id)
    if row is not None:
        row.preparations_begun = max(0, row.preparations_begun - 1)
        job_moves.pause(session, row, "warn", message)


def record(session: Session, job_id: str, message: str, *, level: Level = "info", key: str | None = None) -> None:
    """Write an event of a preparation, once if it has a key. Does nothing once that is over."""
    row = _locked_in_preparation(session, job_id)
    if row is not None and not job_moves.is_told(session, row, key):
        job_moves.add_event(session, row, level, message, key=key)


def finish(session: Session, job_id: str, method: Method) -> None:
    """Queue the job for its first attempt, with a method without `auto`. Does nothing once preparation is over."""
    row = _locked_in_preparation(session, job_id)
    if row is not None:
        row.method = method.stored()
        job_moves.next_attempt(session, row)
        job_moves.add_event(session, row, "info", "Files prepared; job queued")


def refuse(session: Session, job_id: str, code: str, message: str) -> None:
    """Fail the job, with a reason a person can act on. Does nothing once preparation is over."""
    row = _locked_in_preparation(session, job_id)
    if row is not None:
        job_moves.fail(session, row, code, message)


def release(session: Session, row: Job, files: Sequence[File]) -> None:
    """Have the files of a job prepared once all are validated, or fail it when one is unusable.

    What a job says of how its files are read may make rows of what were none when they were uploaded.
    """
    as_uploaded = Method(**row.method).contrastive.data.as_uploaded
    unusable = next((file for file in files if file.status == "error"), None)
    if unusable is not None and as_uploaded:
        job_moves.fail(session, row, "file_invalid", f"{unusable.filename}: {unusable.status_details}")
    elif all(file.status != "uploaded" for file in files):
        against = _reason_against(row, files)
        if against is not None:
            job_moves.fail(session, row, *against)
            return
        row.validated = True
        queue.put(session, row.team_id, queue.PREPARE, [row.id])
        job_moves.add_event(session, row, "info", "Files validated; they are prepared for training next")


def prepare_again(session: Session, row: Job) -> None:
    """Have the files of a job prepared that was paused before they were, or wait for their validation."""
    row.preparations_begun = 0  # a pause may have ended one, which says nothing against the job
    if row.validated:
        queue.put(session, row.team_id, queue.PREPARE, [row.id])
        return
    ids = job_files.named(row).values()
    # Locked, so that no verdict falls between this look at the files and the job that waits for them.
    files = select(File).where(File.id.in_(ids)).order_by(File.id).with_for_update(read=True)
    release(session, row, session.scalars(files.execution_options(populate_existing=True)).all())


def _reason_against(row: Job, files: Sequence[File]) -> tuple[str, str] | None:
    """A code and a sentence, if the reports on the files say that they can't be trained on together."""
    by_id = {file.id: file for file in files}
    read = {param: by_id[file_id] for param, file_id in job_files.named(row).items()}
    for file in read.values():
        wrong = wrong_file(row.model, row.reads, file.format) if file.format else None
        if wrong is not None:
            return "invalid_value", f"{file.filename}: {wrong}"
    openai = OpenAIHyperparameters(**row.openai_hyperparameters) if row.openai_hyperparameters else None
    rows = job_files.training_rows(read)
    method = resolve(Method(**row.method), openai, rows=rows, max_seq_length=row.max_seq_length)
    batch_size = batch_size_to_check(method, rows)
    against = job_refusals.reason_against(read, method.contrastive.data, batch_size=batch_size)
    return against[1:] if against is not None else None


def _locked_in_preparation(session: Session, job_id: str) -> Job | None:
    row = job_moves.locked(session, job_id)
    return row if row is not None and row.state == "validating_files" and row.validated else None
