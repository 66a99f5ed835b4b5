from __future__ import annotations

import pytest

from api_schemas.errors import LikenessError
from storage import files, uploads
from storage.artifacts import StoredFile
from storage.database import Database
from storage.ids import new_id
from storage.tables import Upload
from tests.storage.rows import OTHER_TEAM, TEAM, add_part, add_team, add_upload, end_time_of

ENDINGS = [("completed", "upload_already_ended"), ("cancelled", "upload_already_ended"), ("expired", "upload_expired")]


def upload_of(database: Database, upload_id: str) -> Upload:
    with database.session(TEAM) as session:
        return uploads.get(session, upload_id)


def parts_of(database: Database, upload_id: str) -> list[str]:
    with database.session(TEAM) as session:
        return [row.id for row in uploads.parts(session, upload_id)]


def end(database: Database, upload_id: str, status: str) -> None:
    """Bring an upload with one whole part to its end."""
    if status == "expired":
        end_time_of(database, upload_id)
        return
    with database.session(TEAM) as session:
        if status == "cancelled":
            uploads.cancel(session, upload_id)
            return
        file_id = new_id("file")
        files.create(session, file_id, filename="a", purpose="fine-tune", stored=StoredFile(10, "00"))
        part_ids = [row.id for row in uploads.parts(session, upload_id)]
        uploads.complete(session, upload_id, part_ids=part_ids, md5=None, file_id=file_id)


def refusal_of(database: Database, action: str, upload_id: str, *arguments: object) -> LikenessError:
    with pytest.raises(LikenessError) as refusal, database.session(TEAM) as session:
        getattr(uploads, action)(session, upload_id, *arguments)
    return refusal.value


def test_a_new_upload_is_pending_for_an_hour(database: Database) -> None:
    row = upload_of(database, add_upload(database, 10))

    assert (row.status, row.bytes, row.file_id) == ("pending", 10, None)
    assert row.expires_at - row.created_at == uploads.LIFETIME


@pytest.mark.parametrize(("status", "code"), ENDINGS)
def test_an_upload_that_has_ended_takes_nothing_more(database: Database, status: str, code: str) -> None:
    upload_id = add_upload(database, 10)
    part_id = add_part(database, upload_id, 10, "a")
    end(database, upload_id, status)

    assert upload_of(database, upload_id).status == status
    assert refusal_of(database, "add_part", upload_id, StoredFile(1, "b")).code == code
    assert refusal_of(database, "chosen_parts", upload_id, [part_id]).code == code
    if status != "cancelled":
        assert refusal_of(database, "cancel", upload_id).code == code


def test_cancelling_twice_is_as_good_as_once(database: Database) -> None:
    upload_id = add_upload(database, 10)
    add_part(database, upload_id, 10, "a")

    for _ in range(2):
        end(database, upload_id, "cancelled")

    assert upload_of(database, upload_id).status == "cancelled"
    assert parts_of(database, upload_id) == []


def test_a_part_sent_twice_counts_once(database: Database) -> None:
    upload_id = add_upload(database, 10)

    ids = [add_part(database, upload_id, 6, "a"), add_part(database, upload_id, 6, "a")]
    last = add_part(database, upload_id, 4, "b")

    assert len({*ids, last}) == 3
    assert parts_of(database, upload_id) == [*ids, last]
    for first in ids:
        with database.session(TEAM) as session:
            chosen = uploads.chosen_parts(session, upload_id, [last, first])
        assert chosen == [StoredFile(4, "b"), StoredFile(6, "a")]


def test_parts_come_to_no_more_than_was_declared(database: Database) -> None:
    upload_id = add_upload(database, 10)
    add_part(database, upload_id, 6, "a")

    refusal = refusal_of(database, "add_part", upload_id, StoredFile(5, "b"))

    assert (refusal.code, refusal.param) == ("upload_size_mismatch", "data")
    assert "would hold 11 bytes" in refusal.message
    assert len(parts_of(database, upload_id)) == 1


def test_there_is_a_most_of_parts(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "MAX_PARTS", 2)
    upload_id = add_upload(database, 10)
    for _ in range(2):
        add_part(database, upload_id, 1, "a")

    assert refusal_of(database, "add_part", upload_id, StoredFile(1, "a")).code == "too_many_parts"


def test_only_parts_of_the_upload_itself_are_chosen_each_once_and_to_the_byte(database: Database) -> None:
    upload_id, other = add_upload(database, 10), add_upload(database, 10)
    own, foreign = add_part(database, upload_id, 6, "a"), add_part(database, other, 4, "b")

    wrong = [
        ([own, foreign], "not_found", "part_ids.1"),
        ([own, own], "invalid_value", "part_ids.1"),
        ([own], "upload_size_mismatch", "part_ids"),
    ]
    for part_ids, code, param in wrong:
        refusal = refusal_of(database, "chosen_parts", upload_id, part_ids)
        assert (refusal.code, refusal.param) == (code, param)


def test_what_a_completed_upload_was_asked_is_known_again(database: Database) -> None:
    upload_id = add_upload(database, 10)
    part_ids = [add_part(database, upload_id, 4, "a"), add_part(database, upload_id, 6, "b")]
    with database.session(TEAM) as session:
        files.create(session, "file-1", filename="a", purpose="fine-tune", stored=StoredFile(10, "00"))
        uploads.complete(session, upload_id, part_ids=part_ids, md5="0" * 32, file_id="file-1")

    row = upload_of(database, upload_id)

    assert uploads.is_completed_with(row, part_ids, None)
    assert uploads.is_completed_with(row, part_ids, "0" * 32)
    assert not uploads.is_completed_with(row, part_ids, "1" * 32)
    assert not uploads.is_completed_with(row, part_ids[::-1], None)
    assert not uploads.is_completed_with(row, part_ids[:1], None)
    assert parts_of(database, upload_id) == []


def test_expiring_ends_what_is_over_and_nothing_else(database: Database) -> None:
    over, in_time, completed = (add_upload(database, 10) for _ in range(3))
    for upload_id in (over, in_time, completed):
        add_part(database, upload_id, 10, "a")
    end(database, completed, "completed")
    for upload_id in (over, completed):
        end_time_of(database, upload_id)

    with database.session_across_teams() as session:
        uploads.expire(session)
        assert uploads.pending_ids(session) == {in_time}

    assert [upload_of(database, name).status for name in (over, in_time, completed)] == [
        "expired", "pending", "completed",
    ]  # fmt: skip
    assert (len(parts_of(database, over)), len(parts_of(database, in_time))) == (0, 1)


def test_another_teams_upload_is_none(database: Database) -> None:
    add_team(database)
    upload_id = add_upload(database, 10)
    add_part(database, upload_id, 10, "a")

    for action, *arguments in (
        (uploads.get,), (uploads.get_pending,), (uploads.cancel,),
        (uploads.add_part, StoredFile(1, "b")), (uploads.chosen_parts, ["part-1"]),
    ):  # fmt: skip
        with pytest.raises(LikenessError) as refusal, database.session(OTHER_TEAM) as session:
            action(session, upload_id, *arguments)
        assert refusal.value.code == "not_found"
    with database.session(OTHER_TEAM) as session:
        assert uploads.parts(session, upload_id) == []
