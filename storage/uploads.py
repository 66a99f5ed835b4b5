"""Large uploads: files that arrive in parts, the rows behind /v1/uploads.

Whoever looks at an upload holds its row until the transaction ends, so that parts that arrive at once, a completion
and an expiry come one after another. Nothing slow may happen meanwhile.
"""

from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from api_schemas.errors import LikenessError
from api_schemas.uploads import MAX_PARTS
from storage.artifacts import StoredFile
from storage.ids import new_id
from storage.tables import Upload, UploadPart

#: How long an upload may take, from its creation to its completion. OpenAI's convention.
LIFETIME = timedelta(hours=1)


def create(session: Session, *, filename: str, purpose: str, size: int) -> Upload:
    """A pending upload of a file of `size` bytes."""
    row = Upload(id=new_id("upload"), filename=filename, purpose=purpose, bytes=size, status="pending")
    row.created_at = func.now()
    row.expires_at = func.now() + LIFETIME
    session.add(row)
    session.flush()
    session.refresh(row)
    return row


def get(session: Session, upload_id: str) -> Upload:
    """An upload, locked; expired if its time is over. Raises LikenessError `not_found`."""
    is_over = Upload.expires_at <= func.clock_timestamp()
    found = session.execute(select(Upload, is_over).where(Upload.id == upload_id).with_for_update()).one_or_none()
    if found is None:
        raise LikenessError("not_found", f"There is no upload {upload_id!r}")
    row, over = found
    if over and row.status == "pending":
        row.status = "expired"
    return row


def get_pending(session: Session, upload_id: str) -> Upload:
    """An upload that takes parts, locked.

    Raises LikenessError `not_found`, `upload_already_ended` or `upload_expired`.
    """
    row = get(session, upload_id)
    if row.status == "expired":
        raise LikenessError(
            "upload_expired",
            f"Upload {upload_id} was not completed within {LIFETIME.seconds // 60} minutes and has expired. "
            "Create a new one and send the parts to it.",
        )
    if row.status != "pending":
        raise LikenessError(
            "upload_already_ended", f"Upload {upload_id} is already {row.status}. For another file, create a new one."
        )
    return row


def parts(session: Session, upload_id: str) -> Sequence[UploadPart]:
    """The parts of a pending upload in the order in which they arrived. An upload that has ended has none."""
    query = select(UploadPart).where(UploadPart.upload_id == upload_id)
    return session.scalars(query.order_by(UploadPart.created_at, UploadPart.id)).all()


def add_part(session: Session, upload_id: str, stored: StoredFile) -> UploadPart:
    """The row of a part whose bytes are stored.

    Raises what `get_pending` does, and LikenessError `too_many_parts` or `upload_size_mismatch`. A part with the
    content of an earlier one is taken for the same part sent twice, and counted once.
    """
    upload = get_pending(session, upload_id)
    contents = select(UploadPart.sha256, UploadPart.bytes, func.count()).where(UploadPart.upload_id == upload_id)
    received = session.execute(contents.group_by(UploadPart.sha256, UploadPart.bytes)).all()
    if sum(count for _, _, count in received) >= MAX_PARTS:
        raise LikenessError(
            "too_many_parts",
            f"Upload {upload_id} has {MAX_PARTS} parts already. Create a new one and send larger parts.",
        )
    sizes = {sha256: size for sha256, size, _ in received} | {stored.sha256: stored.bytes}
    if sum(sizes.values()) > upload.bytes:
        raise LikenessError(
            "upload_size_mismatch",
            f"With this part, upload {upload_id} would hold {sum(sizes.values())} bytes, but it was declared with "
            f"{upload.bytes}. Create a new one with the file's true size in `bytes`.",
            param="data",
        )
    row = UploadPart(id=new_id("part"), upload_id=upload_id, bytes=stored.bytes, sha256=stored.sha256)
    session.add(row)
    session.flush()
    session.refresh(row)
    return row


def chosen_parts(session: Session, upload_id: str, part_ids: Sequence[str]) -> list[StoredFile]:
    """The parts that a pending upload is to be made of, in order.

    Raises what `get_pending` does, and LikenessError `not_found` for an id that is no part of this upload,
    `invalid_value` for one that is named twice, `upload_size_mismatch` unless they come to the bytes declared.
    """
    upload = get_pending(session, upload_id)
    received = {row.id: StoredFile(row.bytes, row.sha256) for row in parts(session, upload_id)}
    seen: set[str] = set()
    for index, part_id in enumerate(part_ids):
        if part_id not in received:
            raise LikenessError("not_found", f"This upload has no part {part_id!r}", param=f"part_ids.{index}")
        if part_id in seen:
            raise LikenessError(
                "invalid_value", f"`part_ids` names {part_id!r} twice. Name each part once.", param=f"part_ids.{index}"
            )
        seen.add(part_id)
    chosen = [received[part_id] for part_id in part_ids]
    size = sum(part.bytes for part in chosen)
    if size != upload.bytes:
        raise LikenessError(
            "upload_size_mismatch",
            f"The parts named hold {size} bytes, but the upload was declared with {upload.bytes}. "
            f"GET /v1/uploads/{upload_id} lists the parts received; send what is missing, then complete with all.",
            param="part_ids",
        )
    return chosen


def is_completed_with(upload: Upload, part_ids: Sequence[str], md5: str | None) -> bool:
    """Whether it was completed by a request that asked the same."""
    return upload.status == "completed" and upload.part_ids == list(part_ids) and md5 in (None, upload.md5)


def complete(session: Session, upload_id: str, *, part_ids: Sequence[str], md5: str | None, file_id: str) -> Upload:
    """End an upload with the file it has become. Raises what `get_pending` does."""
    row = get_pending(session, upload_id)
    row.status, row.part_ids, row.md5, row.file_id = "completed", list(part_ids), md5, file_id
    _delete_part_rows(session, upload_id)
    return row


def cancel(session: Session, upload_id: str) -> Upload:
    """Give an upload up. Cancelling again changes nothing. Raises what `get_pending` does."""
    row = get(session, upload_id)
    if row.status != "cancelled":
        row = get_pending(session, upload_id)
        row.status = "cancelled"
        _delete_part_rows(session, upload_id)
    return row


def expire(session: Session) -> None:
    """Let every upload whose time is over be expired."""
    session.execute(
        update(Upload)
        .where(Upload.status == "pending", Upload.expires_at <= func.clock_timestamp())
        .values(status="expired")
    )
    session.execute(
        delete(UploadPart).where(UploadPart.upload_id.in_(select(Upload.id).where(Upload.status == "expired")))
    )


def pending_ids(session: Session) -> set[str]:
    """Ids of all uploads whose parts may still be needed."""
    return set(session.scalars(select(Upload.id).where(Upload.status == "pending")))


def _delete_part_rows(session: Session, upload_id: str) -> None:
    session.execute(delete(UploadPart).where(UploadPart.upload_id == upload_id))
