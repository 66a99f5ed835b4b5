"""/v1/files: datasets, uploaded as a stream and validated in the queue."""

import base64
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import FileResponse
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from api_schemas.errors import LikenessError
from api_schemas.files import File, Validation
from api_schemas.pages import Deleted, Page
from api_schemas.reports import Report
from service.errors import BACKEND_AWAY
from service.file_form import FileForm
from service.idempotency import Sending, SendingDep, is_replay
from service.keys import Caller, CallerDep
from service.routes.paging import After, Limit, page_of
from service.state import ServiceState, StateDep
from service.strict_route import StrictRoute, stream_body
from storage import files, tables
from storage.artifacts import StoredFile
from storage.ids import new_id

router = APIRouter(prefix="/v1/files", tags=["files"], route_class=StrictRoute)

_PURPOSE = "fine-tune"
_FIELDS = {"purpose", "expires_after[anchor]", "expires_after[seconds]"}
_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary", "description": "JSONL, UTF-8."},
                        "purpose": {"type": "string", "enum": [_PURPOSE]},
                    },
                }
            }
        },
    }
}


@router.post("", openapi_extra=_FORM, response_model=File)
async def create_file(request: Request, caller: CallerDep, state: StateDep, sending: SendingDep) -> Response:
    """Upload a dataset: one JSON object a line, {"anchor", "positive"} or {"text", "label"}.

    It is stored as it is sent, and validated in the queue; `status` turns to `processed` or `error`.
    """
    form = FileForm(request.headers.get("content-type", ""))
    body = stream_body(request, state.settings.max_upload_bytes)
    file_id = new_id("file")
    async with sending.receiving(state, caller):
        stored = await state.artifacts.write_file(file_id, form.file_chunks(body))
        try:
            _check(form)
            return await run_in_threadpool(_register, state, caller, file_id, form, stored, sending)
        except LikenessError:
            state.artifacts.delete_file(file_id)
            raise


@contextmanager
def registering(state: ServiceState, caller: Caller, file_id: str) -> Iterator[Session]:
    """A transaction to make the row of a stored file in; validation begins once it is committed.

    Without a row the bytes are of no use and are removed, unless the database went away: then the row may be there
    although nobody heard of it. The reconciler removes bytes that have none.
    """
    try:
        with state.database.session(caller.team_id) as session:
            yield session
    except BACKEND_AWAY:
        raise
    except BaseException:  # whatever it was, a cancelled request included
        state.artifacts.delete_file(file_id)
        raise
    state.dispatcher.soon()


@router.get("")
def list_files(
    caller: CallerDep,
    state: StateDep,
    after: After = None,
    limit: Limit = 100,
    order: Literal["asc", "desc"] = "desc",
    purpose: Annotated[str | None, Query(max_length=64)] = None,
) -> Page[File]:
    """The team's files, newest first unless asked otherwise."""
    with state.database.session(caller.team_id) as session:
        rows, has_more = files.list_files(session, purpose=purpose, after=after, limit=limit, order=order)
        return page_of([wire_file(row) for row in rows], [row.id for row in rows], has_more=has_more)


@router.get("/{file_id}")
def get_file(file_id: str, caller: CallerDep, state: StateDep) -> File:
    """One file, with what validation found."""
    with state.database.session(caller.team_id) as session:
        return wire_file(files.get(session, file_id))


@router.get("/{file_id}/report")
def get_report(file_id: str, caller: CallerDep, state: StateDep) -> Report:
    """What is in a file, what is wrong with it, and what would be trained on it; 409 while it is being validated."""
    with state.database.session(caller.team_id) as session:
        return Report(**files.report(session, file_id))


@router.get("/{file_id}/content", response_class=FileResponse)
def get_content(file_id: str, request: Request, caller: CallerDep, state: StateDep) -> FileResponse:
    """The bytes of a file, as they were sent."""
    with state.database.session(caller.team_id) as session:
        row = files.get(session, file_id)
    _drop_odd_range(request, row.bytes)
    path = state.artifacts.file(row.id)
    if not path.is_file() or path.stat().st_size != row.bytes:
        raise LikenessError(
            "artifact_corrupt",
            f"The stored bytes of {row.id} are gone or cut short; restore them from a backup, or upload them again.",
        )
    # So that a client can tell whether these are the bytes that were sent: RFC 9530.
    digest = base64.b64encode(bytes.fromhex(row.sha256)).decode("ascii")
    headers = {"Repr-Digest": f"sha-256=:{digest}:"}
    return FileResponse(path, headers=headers, media_type="application/octet-stream", filename=row.filename)


@router.delete("/{file_id}")
def delete_file(file_id: str, caller: CallerDep, state: StateDep) -> Deleted:
    """Delete a file. Refused while a job that hasn't ended reads it."""
    with state.database.session(caller.team_id) as session:
        files.delete(session, file_id)
    state.artifacts.delete_file(file_id)
    return Deleted(id=file_id, object="file")


def _check(form: FileForm) -> None:
    if form.filename is None:
        raise LikenessError("missing_parameter", "The form has no 'file'.", param="file")
    if not form.filename.isprintable():
        raise LikenessError("invalid_character", "The file's name holds control characters.", param="file")
    unknown = sorted(form.fields.keys() - _FIELDS)
    if unknown:
        raise LikenessError("unknown_parameter", f"The form has an unknown field {unknown[0]!r}.", param=unknown[0])
    purpose = form.fields.get("purpose")
    if purpose is None:
        raise LikenessError("missing_parameter", f"Send purpose={_PURPOSE!r} with the file.", param="purpose")
    if purpose != _PURPOSE:
        raise LikenessError("invalid_value", f"'purpose' must be {_PURPOSE!r}, not {purpose!r}.", param="purpose")
    if any(name.startswith("expires_after") for name in form.fields):
        raise LikenessError(
            "invalid_value", "Files here don't expire; leave 'expires_after' out.", param="expires_after"
        )


def _register(
    state: ServiceState, caller: Caller, file_id: str, form: FileForm, stored: StoredFile, sending: Sending
) -> Response:
    def create() -> File:
        purpose = form.fields["purpose"]
        return wire_file(files.create(session, file_id, filename=form.filename or "", purpose=purpose, stored=stored))

    with registering(state, caller, file_id) as session:
        answer = sending.once(session, [form.filename, form.fields, stored.bytes, stored.sha256], create)
    if is_replay(answer):
        state.artifacts.delete_file(file_id)
    return answer


def _drop_odd_range(request: Request, size: int) -> None:
    """Serve one range of bytes where one is asked for; anything else asks for a lot of work, and gets the whole."""
    wanted = re.fullmatch(r"bytes=(\d{1,18})-(\d{0,18})", request.headers.get("range", ""))
    if wanted is None or not int(wanted[1]) <= int(wanted[2] or size - 1) or int(wanted[1]) >= size:
        request.scope["headers"] = [item for item in request.scope["headers"] if item[0] != b"range"]


def wire_file(row: tables.File) -> File:
    """A file's row as clients see it."""
    return File(
        id=row.id,
        bytes=row.bytes,
        created_at=int(row.created_at.timestamp()),
        filename=row.filename,
        purpose=row.purpose,
        status=row.status,
        status_details=row.status_details,
        validation=_wire_validation(row),
        sha256=row.sha256,
        format=row.format,
        rows=row.rows,
        error_count=row.error_count or 0,
        errors=row.errors or [],
    )


def _wire_validation(row: tables.File) -> Validation | None:
    if row.validation_started_at is None:
        return None
    return Validation(
        bytes_read=row.validation_bytes_read or 0,
        bytes=row.bytes,
        started_at=int(row.validation_started_at.timestamp()),
    )
