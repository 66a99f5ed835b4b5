"""Large files in parts: as the unmodified `openai` client sends them, and as everything between may fail."""

import asyncio
import contextlib
import hashlib
import itertools
import json
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
import sqlalchemy.exc
from openai import AsyncOpenAI
from sqlalchemy import Connection, Engine, event

from api_schemas.errors import ERROR_CODES, ErrorBody
from api_schemas.uploads import MAX_PART_BYTES
from service.settings import ServiceSettings
from storage.artifacts import ArtifactStore
from tests.installation import PAIRS, Installation, running_installation
from tests.service.forms import form, no_file_beyond, stored
from tests.storage.rows import end_time_of
from workers.reconciler import Reconciler

CONTENT = "\n".join(map(json.dumps, PAIRS)).encode()
PIECES = [CONTENT[start : start + 300] for start in range(0, len(CONTENT), 300)]
MD5 = hashlib.md5(CONTENT).hexdigest()
MIB = 1024 * 1024


def _create(installation: Installation, size: int = len(CONTENT), **fields: Any) -> Any:
    return installation.openai.uploads.create(
        **{"filename": "rows.jsonl", "purpose": "fine-tune", "bytes": size, "mime_type": "application/jsonl", **fields}
    )


def _send(installation: Installation, upload_id: str, pieces: list[bytes] = PIECES) -> list[str]:
    return [installation.openai.uploads.parts.create(upload_id, data=piece).id for piece in pieces]


def _get(installation: Installation, upload_id: str) -> Any:
    return installation.request("GET", f"/v1/uploads/{upload_id}").json()


def _parts_on_disk(installation: Installation, upload_id: str) -> list[str]:
    return stored(installation, f"parts/{upload_id}")


# Through OpenAI's client


def test_a_file_is_sent_in_chunks_and_is_like_any_other(shared: Installation, tmp_path: Path) -> None:
    path = tmp_path / "sätze.jsonl"
    path.write_bytes(CONTENT)

    upload = shared.openai.uploads.upload_file_chunked(
        file=path, mime_type="application/jsonl", purpose="fine-tune", part_size=300, md5=MD5
    )

    assert (upload.status, upload.bytes, upload.filename) == ("completed", len(CONTENT), "sätze.jsonl")
    assert upload.expires_at == upload.created_at + 3600
    assert (upload.file.filename, upload.file.bytes, upload.file.status) == ("sätze.jsonl", len(CONTENT), "uploaded")
    assert upload.file.sha256 == hashlib.sha256(CONTENT).hexdigest()
    assert shared.openai.files.content(upload.file.id).content == CONTENT
    shared.validate(upload.file.id)
    assert shared.openai.files.retrieve(upload.file.id).rows == len(PAIRS)
    assert shared.create_job(upload.file.id).status == "queued"
    assert _parts_on_disk(shared, upload.id) == []


def test_a_file_completed_from_parts_is_validated_by_a_worker(installation: Installation) -> None:
    with installation.worker("cpu"):
        upload = installation.openai.uploads.upload_file_chunked(
            file=CONTENT, filename="rows.jsonl", bytes=len(CONTENT), mime_type="text/plain", purpose="fine-tune"
        )
        file = installation.openai.files.wait_for_processing(upload.file.id, poll_interval=0.1, max_wait_seconds=60)
    assert (file.status, file.rows) == ("processed", len(PAIRS))


def test_the_async_client_sends_parts_all_at_once_and_in_any_order(shared: Installation) -> None:
    async def run() -> None:
        async with AsyncOpenAI(base_url=f"{shared.url}/v1", api_key=shared.key, max_retries=0) as client:
            upload = await client.uploads.create(
                bytes=len(CONTENT), filename="rows.jsonl", mime_type="text/plain", purpose="fine-tune"
            )
            sent = [client.uploads.parts.create(upload.id, data=piece) for piece in reversed(PIECES)]
            ids = [part.id for part in await asyncio.gather(*sent)][::-1]
            assert len({part["id"] for part in _get(shared, upload.id)["parts"]}) == len(PIECES)
            done = await client.uploads.complete(upload.id, part_ids=ids, md5=MD5.upper())
            assert (await client.files.content(done.file.id)).content == CONTENT

            chunked = await client.uploads.upload_file_chunked(
                file=CONTENT, filename="b", bytes=len(CONTENT), mime_type="x", purpose="fine-tune", part_size=999
            )
            assert (await client.files.content(chunked.file.id)).content == CONTENT

            cancelled = await client.uploads.create(bytes=1, filename="c", mime_type="x", purpose="fine-tune")
            assert (await client.uploads.cancel(cancelled.id)).status == "cancelled"

    asyncio.run(run())


def test_a_part_of_the_largest_size_is_taken_and_a_byte_more_is_not(shared: Installation) -> None:
    upload = _create(shared, MAX_PART_BYTES + 1)
    [part_id] = _send(shared, upload.id, [bytes(MAX_PART_BYTES)])
    for size in (MAX_PART_BYTES + 1, MAX_PART_BYTES + MIB):
        with pytest.raises(openai.APIStatusError) as refusal:
            _send(shared, upload.id, [bytes(size)])
        assert (refusal.value.status_code, refusal.value.code) == (413, "request_too_large")
        assert refusal.value.param == "data"
        assert "cut the file into smaller ones" in refusal.value.message
    assert [part["id"] for part in _get(shared, upload.id)["parts"]] == [part_id]
    shared.openai.uploads.cancel(upload.id)


# Going on after an interruption


def test_an_interrupted_client_sees_what_has_arrived_and_goes_on(shared: Installation) -> None:
    upload = _create(shared)
    sent = _send(shared, upload.id, PIECES[:2])

    found = _get(shared, upload.id)

    assert (found["status"], found["file"], found["expires_at"]) == ("pending", None, upload.expires_at)
    assert [(part["id"], part["bytes"], part["upload_id"]) for part in found["parts"]] == [
        (part_id, 300, upload.id) for part_id in sent
    ]
    assert [part["sha256"] for part in found["parts"]] == [hashlib.sha256(piece).hexdigest() for piece in PIECES[:2]]
    done = shared.openai.uploads.complete(upload.id, part_ids=[*sent, *_send(shared, upload.id, PIECES[2:])], md5=MD5)
    assert shared.openai.files.content(done.file.id).content == CONTENT


def test_parts_sent_twice_do_no_harm_even_to_a_full_upload(shared: Installation) -> None:
    upload = _create(shared)
    first, second = _send(shared, upload.id), _send(shared, upload.id)

    assert not set(first) & set(second)
    assert len(_parts_on_disk(shared, upload.id)) == len(PIECES)
    mixed = [first[0], *second[1:]]
    assert shared.openai.uploads.complete(upload.id, part_ids=mixed, md5=MD5).file.bytes == len(CONTENT)
    assert _get(shared, upload.id)["parts"] == []


def test_parts_that_are_not_named_are_dropped(shared: Installation) -> None:
    upload = _create(shared, 20)
    unused, *used = _send(shared, upload.id, [b"0123456789", b"abcde", b"fghij"])
    with pytest.raises(openai.BadRequestError) as refusal:
        shared.openai.uploads.complete(upload.id, part_ids=used)
    assert "hold 10 bytes, but the upload was declared with 20" in refusal.value.message
    done = shared.openai.uploads.complete(upload.id, part_ids=[used[1], unused, used[0]])
    assert shared.openai.files.content(done.file.id).content == b"fghij0123456789abcde"


# Completing


def test_completing_again_gets_the_same_answer_and_makes_no_second_file(installation: Installation) -> None:
    upload = _create(installation)
    ids = _send(installation, upload.id)
    answers = [installation.openai.uploads.complete(upload.id, part_ids=ids) for _ in range(3)]
    assert answers[0] == answers[1] == answers[2]
    assert [file.id for file in installation.openai.files.list()] == [answers[0].file.id]
    for other in (ids[::-1], ids[:1]):
        with pytest.raises(openai.ConflictError) as refusal:
            installation.openai.uploads.complete(upload.id, part_ids=other)
        assert refusal.value.code == "upload_already_ended"
        assert refusal.value.response.headers["x-should-retry"] == "false"
    with pytest.raises(openai.ConflictError):
        installation.openai.uploads.complete(upload.id, part_ids=ids, md5="0" * 32)


def test_completions_at_the_same_time_make_one_file(installation: Installation) -> None:
    upload = _create(installation, 3_000_000)
    ids = _send(installation, upload.id, [bytes([n]) * 1_000_000 for n in range(3)])
    together = threading.Barrier(4)

    def complete(_: int) -> Any:
        together.wait(timeout=30)
        return installation.request("POST", f"/v1/uploads/{upload.id}/complete", json={"part_ids": ids})

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(complete, range(4)))

    assert [answer.status_code for answer in answers] == [200] * 4
    [file_id] = {answer.json()["file"]["id"] for answer in answers}
    assert stored(installation) == [file_id]


def test_a_completed_upload_outlives_its_file(shared: Installation) -> None:
    upload = _create(shared)
    ids = _send(shared, upload.id)
    file_id = shared.openai.uploads.complete(upload.id, part_ids=ids).file.id
    shared.openai.files.delete(file_id)
    for found in (_get(shared, upload.id), shared.openai.uploads.complete(upload.id, part_ids=ids).model_dump()):
        assert (found["status"], found["file"]) == ("completed", None)


# The end of an upload


def test_a_cancelled_upload_takes_nothing_more_and_leaves_nothing(shared: Installation) -> None:
    upload = _create(shared)
    ids = _send(shared, upload.id, PIECES[:2])
    for _ in range(2):
        assert shared.openai.uploads.cancel(upload.id).status == "cancelled"
    assert _parts_on_disk(shared, upload.id) == []
    _assert_ended(shared, upload.id, ids, "upload_already_ended")


def test_an_expired_upload_takes_nothing_more_and_is_swept(installation: Installation) -> None:
    upload = _create(installation)
    ids = _send(installation, upload.id)
    end_time_of(installation.database, upload.id)

    assert _get(installation, upload.id)["status"] == "expired"
    _assert_ended(installation, upload.id, ids, "upload_expired")
    with pytest.raises(openai.ConflictError):
        installation.openai.uploads.cancel(upload.id)
    _sweep(installation)
    assert stored(installation) == []


def _assert_ended(installation: Installation, upload_id: str, ids: list[str], code: str) -> None:
    uploads = installation.openai.uploads
    for act in (lambda: uploads.parts.create(upload_id, data=b"a"), lambda: uploads.complete(upload_id, part_ids=ids)):
        with pytest.raises(openai.ConflictError) as refusal:
            act()
        assert refusal.value.code == code
        assert refusal.value.response.headers["x-should-retry"] == "false"
        assert "reate a new one" in refusal.value.message


def _sweep(installation: Installation) -> None:
    Reconciler(
        installation.database, installation.service.redis, ArtifactStore(installation.settings.artifacts_dir)
    ).sweep()


# Crashes and faults


def test_a_part_on_disk_that_has_no_row_is_in_no_file_and_is_swept(installation: Installation) -> None:
    upload = _create(installation)
    ids = _send(installation, upload.id)
    stray = installation.settings.artifacts_dir / "parts" / upload.id / ("0" * 64)
    stray.write_bytes(b"a part whose sender saw the service die before the commit")
    done = installation.openai.uploads.complete(upload.id, part_ids=ids)
    assert installation.openai.files.content(done.file.id).content == CONTENT
    stray.parent.mkdir(exist_ok=True)
    stray.write_bytes(b"")  # as if the service had died before it removed the parts
    _sweep(installation)
    assert stored(installation) == [done.file.id]


@pytest.mark.parametrize("left", [None, b"", b"x" * 300])
def test_a_part_whose_bytes_are_gone_or_others_makes_no_file_until_it_is_sent_again(
    installation: Installation, left: bytes | None
) -> None:
    upload = _create(installation)
    ids = _send(installation, upload.id)
    on_disk = installation.settings.artifacts_dir / "parts" / upload.id / hashlib.sha256(PIECES[1]).hexdigest()
    on_disk.unlink()
    if left is not None:
        on_disk.write_bytes(left)
    with pytest.raises(openai.InternalServerError) as refusal:
        installation.openai.uploads.complete(upload.id, part_ids=ids)
    assert (refusal.value.code, refusal.value.param) == ("artifact_corrupt", "part_ids.1")
    assert "Send that part again" in refusal.value.message
    assert refusal.value.response.headers["x-should-retry"] == "false"
    assert list(installation.openai.files.list()) == []
    [again] = _send(installation, upload.id, [PIECES[1]])
    done = installation.openai.uploads.complete(upload.id, part_ids=[ids[0], again, *ids[2:]], md5=MD5)
    assert installation.openai.files.content(done.file.id).content == CONTENT


@pytest.mark.parametrize("reply_lost", [False, True], ids=["before the statement", "after the commit"])
def test_wherever_the_database_fails_a_retry_completes_once_and_nothing_is_left(
    installation: Installation, reply_lost: bool
) -> None:
    files: list[str] = []
    for step in itertools.count(1):
        upload = _create(installation)
        body = {"part_ids": _send(installation, upload.id)}
        with _database_failing_at(step, reply_lost=reply_lost) as fired:
            first = installation.request("POST", f"/v1/uploads/{upload.id}/complete", json=body)
        # What fails on the way to the queue comes after the commit, and is not the client's business.
        told = (first.status_code, first.json().get("status"))
        assert told == (200, "completed") or (fired and told == (503, 503)), first.text
        done = installation.request("POST", f"/v1/uploads/{upload.id}/complete", json=body)
        assert done.status_code == 200, done.text
        files.append(done.json()["file"]["id"])
        assert installation.openai.files.content(files[-1]).content == CONTENT
        if not fired:
            break
    assert len(files) > 3
    assert [file.id for file in installation.openai.files.list(order="asc")] == files
    for name in stored(installation, "files"):
        os.utime(installation.settings.artifacts_dir / "files" / name, (0, 0))
    _sweep(installation)
    assert stored(installation) == sorted(files)


@contextlib.contextmanager
def _database_failing_at(step: int, *, reply_lost: bool) -> Iterator[list[str]]:
    """Have the API, whose process this is, lose PostgreSQL at its n-th statement, or at the answer to its n-th commit.

    What is yielded is empty until that has happened. What is handed to the queue meanwhile isn't counted.
    """
    fired: list[str] = []
    steps = itertools.count(1)

    def is_here() -> bool:
        return threading.current_thread().name != "dispatcher" and next(steps) == step

    def fail_statement(_connection: Connection, _cursor: Any, statement: str, *_: Any) -> None:
        if is_here():
            fired.append(statement)
            raise sqlalchemy.exc.OperationalError(statement, None, ConnectionError("gone"))

    def fail_commit(connection: Connection) -> None:
        if is_here():
            connection.connection.commit()
            fired.append("COMMIT")
            raise sqlalchemy.exc.OperationalError("COMMIT", None, ConnectionError("gone"))

    name, listener = ("commit", fail_commit) if reply_lost else ("before_cursor_execute", fail_statement)
    event.listen(Engine, name, listener)
    try:
        yield fired
    finally:
        event.remove(Engine, name, listener)


def test_a_full_disk_is_told_and_the_upload_goes_on_once_there_is_room(installation: Installation) -> None:
    pieces = [bytes([n]) * 60_000 for n in range(2)]
    upload = _create(installation, 120_000)
    with no_file_beyond(50_000):
        answer = _post_part(installation, upload.id, form((DATA[0], pieces[0])))
    _assert_storage_full(answer)
    assert stored(installation) == []
    ids = _send(installation, upload.id, pieces)
    with no_file_beyond(100_000):
        answer = installation.request("POST", f"/v1/uploads/{upload.id}/complete", json={"part_ids": ids})
    _assert_storage_full(answer)
    assert len(stored(installation)) == 2
    done = installation.openai.uploads.complete(upload.id, part_ids=ids)
    assert installation.openai.files.content(done.file.id).content == b"".join(pieces)


def _assert_storage_full(answer: Any) -> None:
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "storage_full")
    assert answer.headers["retry-after"]


# Wrong requests

WHOLE = {"filename": "a.jsonl", "purpose": "fine-tune", "bytes": 10, "mime_type": "application/jsonl"}

# what of WHOLE is different; status; code; param; words of the message
WRONG_UPLOADS = [
    *[
        pytest.param({name: None}, 400, "invalid_type", name, f"`{name}` must be", id=f"{name} is null")
        for name in ("filename", "bytes", "mime_type")
    ],
    *[
        pytest.param({name: ...}, 400, "missing_parameter", name, "is required", id=f"no {name}")
        for name in ("filename", "purpose", "bytes", "mime_type")
    ],
    pytest.param({"purpose": "batch"}, 400, "invalid_value", "purpose", "must be 'fine-tune'", id="another purpose"),
    pytest.param({"bytes": 0}, 400, "out_of_range", "bytes", "at least 1", id="no bytes"),
    pytest.param({"bytes": -1}, 400, "out_of_range", "bytes", "at least 1", id="fewer than no bytes"),
    pytest.param({"bytes": "10"}, 400, "invalid_type", "bytes", "an integer", id="a word for bytes"),
    pytest.param({"bytes": 1.5}, 400, "invalid_type", "bytes", "an integer", id="half a byte"),
    pytest.param({"bytes": True}, 400, "invalid_type", "bytes", "an integer", id="true for bytes"),
    pytest.param({"bytes": 2**70}, 400, "out_of_range", "bytes", "Integers", id="2^70 bytes"),
    pytest.param(
        {"bytes": 10 * 1024**3 + 1}, 413, "request_too_large", "bytes", "10737418240 bytes", id="too large a file"
    ),
    pytest.param({"bytes": 2**62}, 413, "request_too_large", "bytes", "10737418240 bytes", id="2^62 bytes"),
    pytest.param({"filename": ""}, 400, "out_of_range", "filename", "at least 1 characters", id="an empty name"),
    pytest.param({"filename": "a" * 4097}, 400, "out_of_range", "filename", "at most 4096", id="a long name"),
    pytest.param({"filename": "a\r\nb"}, 400, "invalid_character", "filename", "U+000D", id="CR LF in the name"),
    pytest.param({"filename": "a\u202eb"}, 400, "invalid_character", "filename", "U+202E", id="right-to-left override"),
    pytest.param({"filename": "a\0"}, 400, "invalid_unicode", "filename", "NUL", id="NUL in the name"),
    pytest.param({"mime_type": "a\nb"}, 400, "invalid_character", "mime_type", "U+000A", id="LF in the type"),
    pytest.param(
        {"expires_after": {"anchor": "created_at", "seconds": 3600}}, 400, "invalid_value", "expires_after",
        "leave 'expires_after' out", id="an expiry",
    ),
    pytest.param({"mimetype": "x"}, 400, "unknown_parameter", "mimetype", "did you mean `mime_type`", id="a typo"),
    *[
        pytest.param({name: "x"}, 400, "read_only_parameter", name, "set by the service", id=f"read-only {name}")
        for name in ("id", "status", "created_at", "expires_at", "team_id")
    ],
]  # fmt: skip


@pytest.mark.parametrize(("fields", "status", "code", "param", "words"), WRONG_UPLOADS)
def test_a_wrong_upload_is_refused(
    shared: Installation, fields: Any, status: int, code: str, param: str, words: str
) -> None:
    body = {name: value for name, value in {**WHOLE, **fields}.items() if value is not ...}
    _assert_refused(shared.request("POST", "/v1/uploads", json=body), status, code, param, words)


@pytest.fixture(scope="module")
def upload(shared: Installation) -> str:
    """The id of a pending upload of ten bytes that has six of them."""
    upload_id = _create(shared, 10).id
    _send(shared, upload_id, [b"abcdef"])
    return upload_id


DATA = ('name="data"; filename="upload"', b"ghij")
WRONG_PARTS = [
    pytest.param(form(), 400, "missing_parameter", "data", "no 'data'", id="an empty form"),
    pytest.param(b"", 400, "invalid_multipart", None, "closing boundary", id="nothing"),
    pytest.param(b"bytes", 400, "invalid_multipart", None, "can't be read", id="no form"),
    pytest.param(form(DATA)[:-4], 400, "invalid_multipart", None, "closing boundary", id="cut short"),
    pytest.param(form(("filename=a", b"x")), 400, "invalid_multipart", None, "no name", id="a part without a name"),
    pytest.param(form(('name="file"', b"x")), 400, "missing_parameter", "data", "no 'data'", id="under another name"),
    pytest.param(form(DATA, DATA), 400, "too_many_parts", "data", "more than one 'data'", id="two at once"),
    pytest.param(form(*[('name="a"', b"")] * 9), 400, "too_many_parts", None, "more than 8", id="nine fields"),
    pytest.param(form(DATA, ('name="n"', b"1")), 400, "unknown_parameter", "n", "unknown field 'n'", id="a field more"),
    pytest.param(form((DATA[0], b"")), 400, "out_of_range", "data", "at least 1 byte", id="no bytes"),
    pytest.param(
        form((DATA[0], b"ghijk")), 400, "upload_size_mismatch", "data", "would hold 11 bytes", id="a byte too many"
    ),
    pytest.param(
        form((DATA[0], b"x" * MIB)), 400, "upload_size_mismatch", "data", "true size in `bytes`", id="many too many"
    ),
]  # fmt: skip


@pytest.mark.parametrize(("body", "status", "code", "param", "words"), WRONG_PARTS)
def test_a_wrong_part_is_refused_and_not_kept(
    shared: Installation, upload: str, body: bytes, status: int, code: str, param: str | None, words: str
) -> None:
    before = _get(shared, upload), stored(shared)
    _assert_refused(_post_part(shared, upload, body), status, code, param, words)
    assert (_get(shared, upload), stored(shared)) == before


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        pytest.param({"Content-Type": "application/octet-stream"}, "unsupported_media_type", id="raw bytes"),
        pytest.param({"Content-Type": "application/json"}, "unsupported_media_type", id="JSON"),
        pytest.param({"Content-Encoding": "gzip"}, "unsupported_encoding", id="compressed"),
    ],
)
def test_a_part_that_is_no_plain_form_is_refused(
    shared: Installation, upload: str, headers: dict[str, str], code: str
) -> None:
    answer = _post_part(shared, upload, form(DATA), **headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, code)


WRONG_COMPLETIONS = [
    pytest.param({}, 400, "missing_parameter", "part_ids", "is required", id="no parts named"),
    pytest.param({"part_ids": []}, 400, "out_of_range", "part_ids", "at least 1 items", id="an empty list"),
    pytest.param({"part_ids": "THEIRS"}, 400, "invalid_type", "part_ids", "an array", id="one id, not in a list"),
    pytest.param({"part_ids": [None]}, 400, "invalid_type", "part_ids.0", "a string", id="null for an id"),
    pytest.param({"part_ids": ["p"] * 10_001}, 400, "out_of_range", "part_ids", "at most 10000", id="10 001 ids"),
    pytest.param({"part_ids": ["part-0"]}, 404, "not_found", "part_ids.0", "no part 'part-0'", id="no such part"),
    pytest.param({"part_ids": ["OWN", "../x"]}, 404, "not_found", "part_ids.1", "no part", id="an id that climbs"),
    pytest.param({"part_ids": ["OTHER"]}, 404, "not_found", "part_ids.0", "no part", id="a part of another upload"),
    pytest.param({"part_ids": ["OWN", "OWN"]}, 400, "invalid_value", "part_ids.1", "each part once", id="a part twice"),
    pytest.param({"part_ids": ["OWN"]}, 400, "upload_size_mismatch", "part_ids", "send what is missing", id="too few"),
    pytest.param({"part_ids": ["OWN"], "md5": "0" * 31}, 400, "invalid_value", "md5", "matches", id="31 digits of MD5"),
    pytest.param({"part_ids": ["OWN"], "md5": "g" * 32}, 400, "invalid_value", "md5", "matches", id="no digits of MD5"),
    pytest.param({"part_ids": ["OWN"], "md5": 7}, 400, "invalid_type", "md5", "a string", id="a number as MD5"),
    pytest.param({"part_ids": ["OWN"], "parts": 1}, 400, "unknown_parameter", "parts", "`part_ids`", id="a typo"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "status", "code", "param", "words"), WRONG_COMPLETIONS)
def test_a_wrong_completion_is_refused_and_the_upload_stays_as_it_is(
    shared: Installation, upload: str, body: Any, status: int, code: str, param: str, words: str
) -> None:
    before = _get(shared, upload)
    other = _create(shared, 10).id
    ids = {"OWN": before["parts"][0]["id"], "OTHER": _send(shared, other, [b"0123456789"])[0]}
    if isinstance(body.get("part_ids"), list):
        body = {**body, "part_ids": [ids.get(name, name) for name in body["part_ids"]]}
    answer = shared.request("POST", f"/v1/uploads/{upload}/complete", json=body)
    _assert_refused(answer, status, code, param, words)
    assert _get(shared, upload) == before


def test_a_whole_of_another_checksum_is_refused_and_may_be_mended(shared: Installation) -> None:
    upload_id = _create(shared, 4).id
    ids = _send(shared, upload_id, [b"ab", b"cd"])
    path, md5 = f"/v1/uploads/{upload_id}/complete", hashlib.md5(b"abcd").hexdigest()
    answer = shared.request("POST", path, json={"part_ids": ids[::-1], "md5": md5})
    _assert_refused(answer, 400, "checksum_mismatch", "md5", "Check their order")
    assert shared.request("POST", path, json={"part_ids": ids, "md5": md5}).status_code == 200


@pytest.mark.parametrize("size", [100_000, 100_001])
def test_an_upload_may_be_as_large_as_a_file_may(settings: ServiceSettings, size: int) -> None:
    with running_installation(settings.model_copy(update={"max_upload_bytes": 100_000})) as installation:
        answer = installation.request("POST", "/v1/uploads", json={**WHOLE, "bytes": size})
    if size == 100_000:
        assert answer.status_code == 200
    else:
        _assert_refused(answer, 413, "request_too_large", "bytes", "the 100000 bytes a file may have")


def _post_part(installation: Installation, upload_id: str, body: bytes, **headers: str) -> Any:
    media = {"Content-Type": "multipart/form-data; boundary=b", **headers}
    return installation.request("POST", f"/v1/uploads/{upload_id}/parts", content=body, headers=media)


def _assert_refused(answer: Any, status: int, code: str, param: str | None, words: str) -> None:
    told = ErrorBody.model_validate(answer.json())
    assert (answer.status_code, told.error.code, told.error.param) == (status, code, param), told
    assert words in told.error.message
    assert (told.error.type, told.title) == (ERROR_CODES[code].type, ERROR_CODES[code].meaning)
