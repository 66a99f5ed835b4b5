"""Uploaded files: the rows behind /v1/files."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, func, select, update
from sqlalchemy.orm import Session

from api_schemas.batches import too_few_classes
from api_schemas.errors import LikenessError
from api_schemas.jobs import UNENDED
from api_schemas.reports import Report
from storage import job_files, queue
from storage.artifacts import StoredFile
from storage.pages import Order, page
from storage.tables import File, Job

#: How many processes may die while they validate a file, before nobody tries again.
MOST_DEATHS = 3

#: Which files nobody has validated yet.
WITHOUT_VERDICT = (File.status == "uploaded", File.deleted_at.is_(None))
_NO_VALIDATION = {"validation_started_at": None, "validation_bytes_read": None}


@dataclass(frozen=True)
class Verdict:
    """What validation found: a format and rows, or errors and a sentence that sums them up."""

    usable: bool
    format: str | None
    rows: int
    error_count: int
    errors: list[dict[str, Any]]
    summary: str | None
    report: dict[str, Any] | None = None  # see api_schemas.reports


def create(session: Session, file_id: str, *, filename: str, purpose: str, stored: StoredFile) -> File:
    """The row of a file whose bytes are stored; its validation is asked for in the same commit."""
    row = File(id=file_id, filename=filename, purpose=purpose, bytes=stored.bytes, sha256=stored.sha256)
    row.status = "uploaded"
    session.add(row)
    session.flush()
    queue.put(session, row.team_id, queue.VALIDATE_FILE, [file_id])
    session.refresh(row)
    return row


def get(session: Session, file_id: str, *, param: str | None = None) -> File:
    """A file that isn't deleted. Raises LikenessError `not_found`."""
    row = find(session, file_id)
    if row is None:
        raise LikenessError("not_found", f"There is no file {file_id!r}", param=param)
    return row


def find(session: Session, file_id: str) -> File | None:
    """A file that isn't deleted, or None."""
    return session.scalar(select(File).where(File.id == file_id, File.deleted_at.is_(None)))


def list_files(
    session: Session, *, purpose: str | None, after: str | None, limit: int, order: Order
) -> tuple[Sequence[File], bool]:
    """A page of the team's files, and whether more follow."""
    criteria: list[ColumnElement[bool]] = [File.deleted_at.is_(None)]
    if purpose is not None:
        criteria.append(File.purpose == purpose)
    return page(session, File, *criteria, after=after, limit=limit, order=order)


def delete(session: Session, file_id: str) -> None:
    """Mark a file deleted. Raises LikenessError `not_found`, or `file_in_use` while a job reads it."""
    row = get(session, file_id)
    # Whoever creates a job on this file waits from here on, and then finds it deleted.
    session.refresh(row, with_for_update=True)
    job = session.scalar(select(Job).where(job_files.reads(file_id), Job.state.in_(UNENDED)).limit(1))
    if job is not None:
        raise LikenessError(
            "file_in_use",
            f"Job {job.id} reads this file and has not ended. Cancel the job first, or wait for it.",
            headers={"x-should-retry": "false"},
        )
    row.deleted_at = func.clock_timestamp()


def ids(session: Session) -> set[str]:
    """Ids of all files that aren't deleted."""
    return set(session.scalars(select(File.id).where(File.deleted_at.is_(None))))


def report(session: Session, file_id: str) -> dict[str, Any]:
    """What validation left as a file's report (see api_schemas.reports).

    Raises LikenessError `not_found`, or `file_not_validated` while there is none yet.
    """
    row = get(session, file_id)
    if row.report is not None:
        return row.report
    if row.status == "uploaded":
        raise LikenessError(
            "file_not_validated",
            f"File {file_id} is still being validated. Ask again when its status is 'processed' or 'error'.",
            headers={"Retry-After": "1"},
        )
    raise LikenessError(
        "not_found",
        f"File {file_id} has no report: {row.status_details or 'An older version validated it; upload it again.'}",
    )


def reason_against(training: File, validation: File | None, *, batch_size: int) -> tuple[str, str, str] | None:
    """Why files that are usable one by one can't be trained on: the request's field, a code and a sentence."""
    if validation is not None and validation.sha256 == training.sha256:
        message = "The validation file is the training file, byte for byte. Validate on rows that are not trained on."
        return "validation_file", "evaluation_in_training", message
    if training.report is None:
        return None
    report = Report(**training.report)
    if report.labels is not None:
        too_few = too_few_classes(report.labels, report.rows, batch_size)
        if too_few is not None:
            return "training_file", "too_few_classes", f"{training.filename}: {too_few}"
    for reason in report.verdict.reasons:
        if reason.code != "too_few_classes":  # of the batch size that is automatic
            return "training_file", reason.code, f"{training.filename}: {reason.message}"
    return None


def is_unjudged(session: Session, file_id: str) -> bool:
    """Whether a file is there and nobody has validated it yet."""
    return session.scalar(select(File.id).where(*_waits_for_verdict(file_id))) is not None


def begin_validation(session: Session, file_id: str) -> File | None:
    """Count another beginning of a file's validation. None if it is deleted or has its verdict."""
    return session.scalar(
        update(File)
        .where(*_waits_for_verdict(file_id))
        .values(
            validations_begun=File.validations_begun + 1,
            validation_started_at=func.clock_timestamp(),
            validation_bytes_read=0,
        )
        .returning(File)
    )


def record_validation(session: Session, file_id: str, *, bytes_read: int) -> bool:
    """Keep how far a validation is. False when nobody waits for its end: the file is deleted, or has its verdict."""
    recorded = session.execute(
        update(File).where(*_waits_for_verdict(file_id)).values(validation_bytes_read=bytes_read).returning(File.id)
    )
    return recorded.first() is not None


def give_back_validation(session: Session, file_id: str) -> None:
    """Take back the last beginning, because its worker is going away."""
    session.execute(
        update(File)
        .where(*_waits_for_verdict(file_id), File.validations_begun > 0)
        .values(validations_begun=File.validations_begun - 1, **_NO_VALIDATION)
    )


def record_verdict(session: Session, file_id: str, verdict: Verdict) -> bool:
    """Keep what validation found. False for a deleted file, or when somebody else has already: the first one stays."""
    recorded = session.execute(
        update(File)
        .where(*_waits_for_verdict(file_id))
        .values(
            **_NO_VALIDATION,
            status="processed" if verdict.usable else "error",
            status_details=verdict.summary,
            format=verdict.format,
            rows=verdict.rows,
            error_count=verdict.error_count,
            errors=verdict.errors,
            report=verdict.report,
        )
        .returning(File.id)
    )
    return recorded.first() is not None


def _waits_for_verdict(file_id: str) -> tuple[ColumnElement[bool], ...]:
    return File.id == file_id, *WITHOUT_VERDICT
