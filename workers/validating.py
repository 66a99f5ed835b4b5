"""What happens to an uploaded file: it is read row by row, and the verdict releases the jobs that wait for it.

Whatever happens while it is read, the file ends with a verdict, or another worker begins again, and that only so often.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path

import structlog
from sqlalchemy.exc import OperationalError

from api_schemas.defaults import MODEL
from api_schemas.files import MAX_LISTED_ERRORS
from storage import disk, files, preparations
from storage.artifacts import ArtifactStore
from storage.database import Database
from storage.files import Verdict
from storage.settings import StorageSettings
from storage.tables import File
from workers.data.inspection import Inspection, inspect, max_seq_length_of, tokens_of
from workers.data.plan import Setting
from workers.data.validation import StoppedError
from workers.patience import patiently

log = structlog.get_logger("likeness.validating")

#: How often it is written down how far a validation is, and looked whether the file is still there.
_LOOK_EVERY_SECONDS = 2.0

_REMEDY = (
    "Most often memory runs out, which Parquet files with large row groups need, or a damaged file makes its reader "
    "crash. Convert it to JSON Lines unless it is, or split it, and upload it again."
)


def validate(settings: StorageSettings, database: Database, file_id: str, stop: threading.Event) -> None:
    """Read a file, keep the verdict, and release the jobs that waited for it.

    Does nothing for a file that is deleted or has its verdict. Once `stop` is set, the file is given back: another
    worker begins again, and this beginning doesn't count. Whoever calls holds the claim on the file.
    """
    with database.session_across_teams() as session:
        row = files.begin_validation(session, file_id)
    if row is None:
        log.info("delivery_ignored", reason="the file is deleted, or validated already")
        return
    try:
        verdict = _Validation(settings, database, row, stop).verdict()
    except StoppedError:
        if stop.is_set():
            _give_back(database, file_id)
        else:
            log.info("validation_stopped", reason="the file is deleted")
        return
    _record(database, file_id, verdict)


def _give_back(database: Database, file_id: str) -> None:
    def write() -> None:
        with database.session_across_teams() as session:
            files.give_back_validation(session, file_id)

    patiently(write)
    log.info("file_given_back")


def _record(database: Database, file_id: str, verdict: Verdict) -> None:
    def write() -> None:
        with database.session_across_teams() as session:
            files.record_verdict(session, file_id, verdict)
            preparations.release_waiting_for(session, file_id)

    patiently(write)
    log.info("file_validated", usable=verdict.usable, rows=verdict.rows, refused=verdict.error_count)


class _Validation:
    """One beginning of a file's validation."""

    def __init__(self, settings: StorageSettings, database: Database, row: File, stop: threading.Event) -> None:
        self._settings = settings
        self._database = database
        self._row = row
        self._stop = stop
        self._bytes_read = 0
        self._looked = time.monotonic()
        self._over = False

    def verdict(self) -> Verdict:
        """What is to be said of the file, whatever happens while it is read. Raises StoppedError."""
        try:
            artifacts = ArtifactStore(self._settings.artifacts_dir)
            with artifacts.scratch(self._row.id) as scratch:
                return self._verdict(artifacts.file(self._row.id), scratch)
        except StoppedError:
            raise
        except Exception as error:  # the edge of the process: whatever it is, another beginning would meet it again
            log.exception("validation_failed", reason=type(error).__name__)
            return _unread(_why(error))

    def _verdict(self, path: Path, scratch: Path) -> Verdict:
        if self._row.validations_begun > files.MOST_DEATHS:
            log.error("file_given_up", deaths=files.MOST_DEATHS)
            return _unread(f"Reading it has killed the worker {files.MOST_DEATHS} times. {_REMEDY}")
        if not path.exists():
            return _unread("Its bytes are gone from the artifact store; upload it again.")
        return _of(
            inspect(
                path,
                Setting(MODEL, max_seq_length_of(MODEL, self._settings.base_models_dir)),
                filename=self._row.filename,
                measure=tokens_of(MODEL, self._settings.base_models_dir),
                scratch=scratch,
                progress=self._keep_progress,
                should_stop=self._should_stop,
            )
        )

    def _keep_progress(self, _path: Path, bytes_read: int) -> None:
        self._bytes_read = bytes_read

    def _should_stop(self) -> bool:
        """Whether to stop. Now and then it is looked whether the file is still there, and told how far it is."""
        if self._stop.is_set():
            return True
        if not self._over and time.monotonic() - self._looked >= _LOOK_EVERY_SECONDS:
            self._looked = time.monotonic()
            self._over = not self._goes_on()
        return self._over

    def _goes_on(self) -> bool:
        try:
            with self._database.session_across_teams() as session:
                return files.record_validation(session, self._row.id, bytes_read=self._bytes_read)
        except OperationalError as error:  # the next look will tell
            log.warning("progress_not_recorded", reason=type(error).__name__)
            return True


def _of(inspected: Inspection) -> Verdict:
    found = inspected.found
    return Verdict(
        usable=found.usable,
        format=found.format,
        rows=found.rows,
        error_count=found.error_count,
        errors=[error.model_dump() for error in found.errors[:MAX_LISTED_ERRORS]],
        summary=found.summary,
        report=inspected.report.model_dump(mode="json"),
    )


def _unread(reason: str) -> Verdict:
    return Verdict(usable=False, format=None, rows=0, error_count=0, errors=[], summary=reason)


def _why(error: Exception) -> str:
    """Why a file could not be read to its end, and what to do."""
    if isinstance(error, MemoryError):
        return f"Reading it needs more memory than the worker has. {_REMEDY}"
    # Not tried again: on a full disk each try would read the file anew and fail at the same place, without an end.
    if disk.is_full(error):
        return (
            "The disk of the data directory was full while the file was validated, which takes room for temporary "
            "files. Free space, then upload the file again."
        )
    if isinstance(error, OSError):
        return (
            f"Reading it failed ({error.strerror or error}). The worker's log says more: see to its data directory, "
            "then upload the file again."
        )
    return (
        f"Validating it ended in an error that was not expected ({type(error).__name__}). This is a defect of the "
        "service: please report it with the worker's log."
    )
