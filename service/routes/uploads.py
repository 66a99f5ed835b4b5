"""/v1/uploads: large files, sent in parts, several at once and in any order."""

from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from api_schemas.errors import LikenessError
from api_schemas.uploads import MAX_PART_BYTES, Upload, UploadComplete, UploadCreate, UploadPart
from service.file_form import FileForm
from service.idempotency import Sending, SendingDep, is_replay
from service.keys import Caller, CallerDep
from service.routes.files import registering, wire_file
from service.state import ServiceState, StateDep
from service.strict_route import StrictRoute, stream_body
from storage import files, tables, uploads
from storage.artifacts import ReceivedPart, StoredFile
from storage.ids import new_id

router = APIRouter(prefix="/v1/uploads", tags=["uploads"], route_class=StrictRoute)

_PART_FIELD = "data"
#: What a form may have around the part: boundaries, headers, a few small fields.
_FORM_BYTES = 128 * 1024
_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": [_PART_FIELD],
                    "properties": {
                        _PART_FIELD: {
                            "type": "string",
                            "format": "binary",
                            "description": f"1 to {MAX_PART_BYTES} bytes of the file.",
                        },
                    },
                }
            }
        },
    }
}


def existing_upload(upload_id: str, caller: CallerDep, state: StateDep) -> str:
    """The id of an upload of the caller's team. Raises LikenessError `not_found`."""
    with state.database.session(caller.team_id) as session:
        return uploads.get(session, upload_id).id


def pending_upload(upload_id: str, caller: CallerDep, state: StateDep) -> str:
    """The id of an upload of the caller's team that takes parts.

    Raises LikenessError `not_found`, `upload_already_ended` or `upload_expired`.
    """
    with state.database.session(caller.team_id) as session:
        return uploads.get_pending(session, upload_id).id


@router.post("", response_model=Upload)
def create_upload(request: UploadCreate, caller: CallerDep, state: StateDep, sending: SendingDep) -> Response:
    """Begin to send a file in parts. It takes parts for an hour, and becomes a file when it is completed."""
    limit = state.settings.max_upload_bytes
    if request.bytes > limit:
        raise LikenessError(
            "request_too_large", f"`bytes` is more than the {limit} bytes a file may have here.", param="bytes"
        )

    def create() -> Upload:
        row = uploads.create(session, filename=request.filename, purpose=request.purpose, size=request.bytes)
        return _wire(session, row)

    with state.database.session(caller.team_id) as session:
        return sending.once(session, _asked(request), create)


@router.get("/{upload_id}")
def get_upload(upload_id: str, caller: CallerDep, state: StateDep) -> Upload:
    """An upload and the parts that have arrived, so that a client that was interrupted can go on."""
    with state.database.session(caller.team_id) as session:
        return _wire(session, uploads.get(session, upload_id))


@router.post("/{upload_id}/parts", openapi_extra=_FORM, response_model=UploadPart)
async def create_part(
    request: Request,
    # Looked up before the body is read: a body of 64 MB is not worth reading for nothing.
    upload_id: Annotated[str, Depends(pending_upload)],
    caller: CallerDep,
    state: StateDep,
    sending: SendingDep,
) -> Response:
    """Send a part. Several may be sent at once; a part sent twice gets two ids, and either will do."""
    form = FileForm(request.headers.get("content-type", ""), _PART_FIELD)
    body = stream_body(request, MAX_PART_BYTES + _FORM_BYTES, _part_too_large())
    async with (
        sending.receiving(state, caller),
        state.artifacts.receiving_part(upload_id, _bounded(form.file_chunks(body))) as part,
    ):
        _check(form, part.stored)
        return await run_in_threadpool(_keep_part, state, caller, upload_id, part, sending)


@router.post("/{upload_id}/complete", response_model=Upload)
async def complete_upload(
    # Looked up before the body is judged: another team's id is told nothing but 404.
    upload_id: Annotated[str, Depends(existing_upload)],
    request: UploadComplete,
    caller: CallerDep,
    state: StateDep,
    sending: SendingDep,
) -> Response:
    """Make a file of the parts named, in their order; it is then validated in the queue like any other.

    All of it happens or nothing. Completing again with the same `part_ids` gets the same answer.
    """
    async with sending.receiving(state, caller):
        answer = await run_in_threadpool(_completed_before, state, caller, upload_id, request, sending)
        if answer is not None:
            return answer
        try:
            return await _assemble(state, caller, upload_id, request, sending)
        except LikenessError:
            # A request that was sent twice may have been served by its twin, which took the parts away.
            answer = await run_in_threadpool(_completed_before, state, caller, upload_id, request, sending)
            if answer is None:
                raise
            return answer


@router.post("/{upload_id}/cancel")
def cancel_upload(upload_id: str, caller: CallerDep, state: StateDep) -> Upload:
    """Give an upload up; its parts are removed."""
    with state.database.session(caller.team_id) as session:
        answer = _wire(session, uploads.cancel(session, upload_id))
    state.artifacts.delete_parts(upload_id)
    return answer


async def _bounded(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    size = 0
    async for chunk in chunks:
        size += len(chunk)
        if size > MAX_PART_BYTES:
            raise _part_too_large()
        yield chunk


def _part_too_large() -> LikenessError:
    return LikenessError(
        "request_too_large",
        f"The part is larger than {MAX_PART_BYTES} bytes; cut the file into smaller ones.",
        param=_PART_FIELD,
    )


def _check(form: FileForm, stored: StoredFile) -> None:
    if form.filename is None:
        raise LikenessError("missing_parameter", f"The form has no '{_PART_FIELD}'.", param=_PART_FIELD)
    if form.fields:
        unknown = min(form.fields)
        raise LikenessError("unknown_parameter", f"The form has an unknown field {unknown!r}.", param=unknown)
    if stored.bytes == 0:
        raise LikenessError("out_of_range", "The part is empty; send at least 1 byte.", param=_PART_FIELD)


def _keep_part(state: ServiceState, caller: Caller, upload_id: str, part: ReceivedPart, sending: Sending) -> Response:
    def create() -> UploadPart:
        row = uploads.add_part(session, upload_id, part.stored)
        # Before the commit: bytes without a row are never read, and are swept with the upload; a row without bytes
        # would promise a part that isn't there.
        state.artifacts.keep_part(upload_id, part)
        return _wire_part(row)

    with state.database.session(caller.team_id) as session:
        return sending.once(session, [part.stored.bytes, part.stored.sha256], create)


def _completed_before(
    state: ServiceState, caller: Caller, upload_id: str, request: UploadComplete, sending: Sending
) -> Response | None:
    """What a request got that asked the same before; None while the upload is pending.

    Raises LikenessError `upload_already_ended` or `upload_expired`, and as `Sending.again` does.
    """
    with state.database.session(caller.team_id) as session:
        answer = sending.again(session, _asked(request))
        if answer is not None:
            return answer
        row = uploads.get(session, upload_id)
        if uploads.is_completed_with(row, request.part_ids, request.md5):
            return sending.once(session, _asked(request), lambda: _wire(session, row))
        uploads.get_pending(session, upload_id)
        return None


async def _assemble(
    state: ServiceState, caller: Caller, upload_id: str, request: UploadComplete, sending: Sending
) -> Response:
    parts = await run_in_threadpool(_chosen_parts, state, caller, upload_id, request)
    file_id = new_id("file")
    stored = await state.artifacts.assemble(file_id, upload_id, parts, request.md5)
    return await run_in_threadpool(_register, state, caller, upload_id, request, file_id, stored, sending)


def _chosen_parts(state: ServiceState, caller: Caller, upload_id: str, request: UploadComplete) -> list[StoredFile]:
    with state.database.session(caller.team_id) as session:
        return uploads.chosen_parts(session, upload_id, request.part_ids)


def _register(
    state: ServiceState,
    caller: Caller,
    upload_id: str,
    request: UploadComplete,
    file_id: str,
    stored: StoredFile,
    sending: Sending,
) -> Response:
    def create() -> Upload:
        upload = uploads.get_pending(session, upload_id)
        files.create(session, file_id, filename=upload.filename, purpose=upload.purpose, stored=stored)
        uploads.complete(session, upload_id, part_ids=request.part_ids, md5=request.md5, file_id=file_id)
        return _wire(session, upload)

    with registering(state, caller, file_id) as session:
        answer = sending.once(session, _asked(request), create)
    if is_replay(answer):
        state.artifacts.delete_file(file_id)
    state.artifacts.delete_parts(upload_id)
    return answer


def _asked(request: UploadCreate | UploadComplete) -> Any:
    # As it was sent: what is left out stays out, though a later version may know more to leave out.
    return request.model_dump(mode="json", exclude_unset=True)


def _wire(session: Session, row: tables.Upload) -> Upload:
    file = files.find(session, row.file_id) if row.file_id else None
    return Upload(
        id=row.id,
        bytes=row.bytes,
        created_at=int(row.created_at.timestamp()),
        expires_at=int(row.expires_at.timestamp()),
        filename=row.filename,
        purpose=row.purpose,
        status=row.status,
        file=wire_file(file) if file else None,
        parts=[_wire_part(part) for part in uploads.parts(session, row.id)] if row.status == "pending" else [],
    )


def _wire_part(row: tables.UploadPart) -> UploadPart:
    return UploadPart(
        id=row.id,
        created_at=int(row.created_at.timestamp()),
        upload_id=row.upload_id,
        bytes=row.bytes,
        sha256=row.sha256,
    )
