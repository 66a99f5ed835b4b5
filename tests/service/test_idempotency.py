"""Requests that are sent again, by hand or by the unmodified `openai` client, create one thing."""

import contextlib
import itertools
import json
import secrets
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from openai import OpenAI
from pydantic import SecretStr
from sqlalchemy import text

from service.settings import ServiceSettings
from tests.installation import PAIRS, TINY, Installation, running_installation
from tests.processes import until
from tests.proxies import AnswerLosingProxy, PostgresProxy, When, running
from tests.service.asking import port_of, send
from tests.service.edge_server import Answer, connect, read_answer
from tests.service.forms import form, stored

CONTENT = "\n".join(map(json.dumps, PAIRS)).encode()
FORM = form(('name="purpose"', b"fine-tune"), ('name="file"; filename="rows.jsonl"', CONTENT))
FORM_TYPE = {"Content-Type": "multipart/form-data; boundary=b"}
JOBS, FILES, UPLOADS = "/v1/fine_tuning/jobs", "/v1/files", "/v1/uploads"
REPLAYED = "idempotency-replayed"

Send = Callable[[str], Answer]


def _key() -> str:
    return secrets.token_hex(8)


def _post_form(api: Installation, path: str, content: bytes, **headers: str) -> Answer:
    return send(api, "POST", path, content, **FORM_TYPE, **headers)


def _post_job(api: Installation, file_id: str, *, suffix: str = "a", **headers: str | bytes) -> Answer:
    return send(api, "POST", JOBS, {"model": TINY, "training_file": file_id, "suffix": suffix}, **headers)


def _ids(installation: Installation, path: str) -> list[str]:
    listed = send(installation, "GET", f"{path}?limit=100").json
    assert not listed["has_more"]
    return [each["id"] for each in listed["data"]]


def _new_upload(installation: Installation, size: int = len(CONTENT)) -> str:
    return installation.openai.uploads.create(
        bytes=size, filename="rows.jsonl", mime_type="text/plain", purpose="fine-tune"
    ).id


# Keys


def _creation(installation: Installation, pairs_file: str, what: str) -> tuple[Send, Send]:
    """How to ask for something under a key, and for something else of its kind."""

    def post(path: str, body: Any) -> Send:
        return lambda key: send(installation, "POST", path, body, **{"Idempotency-Key": key})

    def post_form(path: str, content: bytes) -> Send:
        return lambda key: _post_form(installation, path, content, **{"Idempotency-Key": key})

    match what:
        case "job":
            job = {"model": TINY, "training_file": pairs_file}
            return post(JOBS, job), post(JOBS, job | {"seed": 1})
        case "file":
            return post_form(FILES, FORM), post_form(FILES, FORM.replace(b"rows.jsonl", b"lines.jsonl"))
        case "upload":
            upload = {"bytes": 10, "filename": "a", "mime_type": "text/plain", "purpose": "fine-tune"}
            return post(UPLOADS, upload), post(UPLOADS, upload | {"bytes": 11})
        case "part":
            path = f"{UPLOADS}/{_new_upload(installation)}/parts"
            part, other = (form(('name="data"; filename="a"', content)) for content in (b"one", b"two"))
            return post_form(path, part), post_form(path, other)
    return _completion(installation, post, CONTENT), _completion(installation, post, b"{}")


def _completion(installation: Installation, post: Callable[[str, Any], Send], content: bytes) -> Send:
    upload_id = _new_upload(installation, len(content))
    part = installation.openai.uploads.parts.create(upload_id, data=content)
    return post(f"{UPLOADS}/{upload_id}/complete", {"part_ids": [part.id]})


@pytest.mark.parametrize("what", ["job", "file", "upload", "part", "completion"])
def test_a_key_gets_its_first_answer_again_and_no_other_requests(
    shared: Installation, pairs_file: str, what: str
) -> None:
    ask, ask_other = _creation(shared, pairs_file, what)
    key = _key()
    first = ask(key)
    assert (first.status, first.headers.get(REPLAYED)) == (200, None)
    before = stored(shared), _ids(shared, FILES), _ids(shared, JOBS)

    again = ask(key)

    assert (again.status, again.body, again.headers.get(REPLAYED)) == (200, first.body, "true")
    refused = ask_other(key)
    assert (refused.status, refused.code) == (422, "idempotency_key_reused")
    assert (stored(shared), _ids(shared, FILES), _ids(shared, JOBS)) == before
    other = ask_other(_key())
    assert (other.status, other.headers.get(REPLAYED)) == (200, None)
    assert other.json["id"] != first.json["id"]


def test_a_body_that_says_the_same_in_another_way_is_the_same(shared: Installation, pairs_file: str) -> None:
    key = {"Idempotency-Key": _key(), "Content-Type": "application/json"}
    bodies = [f'{{"model": "{TINY}", "training_file": "{pairs_file}"}}',
              f'{{"training_file":"{pairs_file}","model":"{TINY}"}}']  # fmt: skip
    first, second = (send(shared, "POST", JOBS, body.encode(), **key) for body in bodies)
    assert (second.body, second.headers[REPLAYED]) == (first.body, "true")

    name = {"Idempotency-Key": _key()}
    kind = {"Content-Type": "multipart/form-data; boundary=another"}
    first = _post_form(shared, FILES, FORM, **name)
    second = send(shared, "POST", FILES, FORM.replace(b"--b", b"--another"), **name, **kind)
    assert (second.body, second.headers[REPLAYED]) == (first.body, "true")


def test_a_key_of_another_team_is_another_key(shared: Installation) -> None:
    key = {"Idempotency-Key": _key()}
    ours, theirs = (_post_form(each, FILES, FORM, **key) for each in (shared, shared.as_second_team()))
    assert (theirs.status, theirs.headers.get(REPLAYED)) == (200, None)
    assert theirs.json["id"] != ours.json["id"]


@pytest.mark.parametrize("key", ["k" * 256, "a b", "", "a\tb", b"\xc3\xa4", b"\x80"])
def test_an_odd_key_is_refused(shared: Installation, pairs_file: str, key: str | bytes) -> None:
    before = _ids(shared, JOBS)
    refused = _post_job(shared, pairs_file, **{"Idempotency-Key": key})
    assert (refused.status, refused.param) == (400, "idempotency-key")
    assert refused.code in ("invalid_value", "invalid_character", "out_of_range")
    assert _ids(shared, JOBS) == before


def test_a_key_of_the_greatest_length_is_taken_and_two_keys_are_not(shared: Installation, pairs_file: str) -> None:
    assert _post_job(shared, pairs_file, **{"Idempotency-Key": _key().ljust(255, "k")}).status == 200
    # The names of headers have no case.
    refused = _post_job(shared, pairs_file, **{"Idempotency-Key": _key(), "idempotency-key": _key()})
    assert (refused.status, refused.code) == (400, "bad_request")


def test_what_was_refused_may_be_asked_again(shared: Installation, pairs_file: str) -> None:
    key = {"Idempotency-Key": _key()}
    assert _post_job(shared, "file-0", **key).status == 404
    assert _post_job(shared, pairs_file, **key).status == 200


def test_of_jobs_asked_for_twice_at_once_there_is_one(shared: Installation, pairs_file: str) -> None:
    key = {"Idempotency-Key": _key()}
    answers: list[Answer] = []
    first = threading.Thread(target=lambda: answers.append(_post_job(shared, pairs_file, **key)))
    with shared.database.engine.connect() as holder:
        # Whoever creates a job looks at its files first.
        holder.execute(text("SELECT 1 FROM files WHERE id = :id FOR UPDATE"), {"id": pairs_file})
        first.start()
        until(lambda: _waits_for_lock(shared))
        refused = _post_job(shared, pairs_file, **key)
    first.join()
    assert (refused.status, refused.code) == (409, "idempotency_key_in_use")
    assert float(refused.headers["retry-after"]) > 0
    assert "x-should-retry" not in refused.headers
    assert answers[0].status == 200
    assert _post_job(shared, pairs_file, **key).body == answers[0].body


def _waits_for_lock(installation: Installation) -> bool:
    with installation.database.engine.connect() as connection:
        waiting = text(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        return bool(connection.scalar(waiting))


@contextlib.contextmanager
def _half_sent(installation: Installation, key: str) -> Iterator[Any]:
    """A connection on which half of an upload has been sent."""
    head = (
        f"POST {FILES} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {installation.key}\r\nIdempotency-Key: {key}\r\n"
        f"Content-Type: {FORM_TYPE['Content-Type']}\r\nContent-Length: {len(FORM)}\r\n\r\n"
    )
    before = stored(installation, "unfinished")
    with contextlib.closing(connect(port_of(installation))) as connection:
        connection.sendall(head.encode() + FORM[: len(FORM) // 2])
        # It has its key, if there was one to have: else whoever looks for it would be first.
        until(lambda: len(stored(installation, "unfinished")) > len(before))
        yield connection


def test_an_upload_sent_twice_at_once_is_refused_while_the_first_is_coming(shared: Installation) -> None:
    key = _key()
    with _half_sent(shared, key) as connection:
        refused = _refused_in_use(shared, key)
        assert refused is not None
        assert float(refused.headers["retry-after"]) > 0
        connection.sendall(FORM[len(FORM) // 2 :])
        first = read_answer(connection)
    assert first.status == 200
    again = _post_form(shared, FILES, FORM, **{"Idempotency-Key": key})
    assert (again.body, again.headers[REPLAYED]) == (first.body, "true")


def _refused_in_use(installation: Installation, key: str) -> Answer | None:
    """The refusal of a request whose key is in use. It asks for nothing that could be done."""
    form_without_file = form(('name="purpose"', b"fine-tune"))
    answer = _post_form(installation, FILES, form_without_file, **{"Idempotency-Key": key})
    return answer if answer.code == "idempotency_key_in_use" else None


def test_a_client_that_leaves_in_the_middle_of_an_upload_frees_its_key(shared: Installation) -> None:
    key = _key()
    with _half_sent(shared, key):
        assert _refused_in_use(shared, key)
    until(lambda: not _refused_in_use(shared, key))
    assert _post_form(shared, FILES, FORM, **{"Idempotency-Key": key}).status == 200


def test_where_many_uploads_hold_their_keys_more_are_taken_and_still_are_one(shared: Installation) -> None:
    with contextlib.ExitStack() as stack:
        keys = [_key() for _ in range(int(shared.service.claims.total_tokens) + 1)]
        connections = [stack.enter_context(_half_sent(shared, key)) for key in keys]
        assert shared.service.claims.available_tokens == 0
        for connection in connections:
            connection.sendall(FORM[len(FORM) // 2 :])
        answers = [read_answer(connection) for connection in connections]
    assert {answer.status for answer in answers} == {200}
    until(lambda: shared.service.claims.borrowed_tokens == 0)
    for key, answer in zip(keys, answers, strict=True):
        assert _post_form(shared, FILES, FORM, **{"Idempotency-Key": key}).body == answer.body


# OpenAI's client, which sends no key


@contextlib.contextmanager
def _lossy(installation: Installation, request: bytes, losses: int) -> Iterator[tuple[OpenAI, AnswerLosingProxy]]:
    """The client, as it is when nobody sets it up, behind a network that loses answers."""
    proxy = AnswerLosingProxy(port_of(installation), request, losses)
    with running(proxy), OpenAI(base_url=f"http://127.0.0.1:{proxy.port}/v1", api_key=installation.key) as client:
        yield client, proxy


def test_the_openai_client_makes_one_job_though_answers_are_lost(installation: Installation) -> None:
    file_id = installation.upload(PAIRS)
    with _lossy(installation, b"POST /v1/fine_tuning/jobs ", 2) as (client, proxy):
        job = client.fine_tuning.jobs.create(model=TINY, training_file=file_id, suffix="a")
        assert proxy.losses == 0
        assert _ids(installation, JOBS) == [job.id]
        another = client.fine_tuning.jobs.create(model=TINY, training_file=file_id, suffix="a")
    assert _ids(installation, JOBS) == [another.id, job.id]


def test_the_openai_client_makes_one_file_though_answers_are_lost(installation: Installation) -> None:
    with _lossy(installation, b"POST /v1/files ", 2) as (client, proxy):
        file = client.files.create(file=("rows.jsonl", CONTENT), purpose="fine-tune")
        assert proxy.losses == 0
        assert _ids(installation, FILES) == [file.id]
        assert stored(installation, "files") == [file.id]
        another = client.files.create(file=("rows.jsonl", CONTENT), purpose="fine-tune")
    assert _ids(installation, FILES) == [another.id, file.id]


@pytest.mark.parametrize("request_line", [b"POST /v1/uploads ", b"POST /v1/uploads/"])
def test_the_openai_client_makes_one_file_of_parts_though_answers_are_lost(
    installation: Installation, request_line: bytes
) -> None:
    with _lossy(installation, request_line, 1) as (client, proxy):
        upload = client.uploads.upload_file_chunked(
            file=CONTENT, filename="rows.jsonl", bytes=len(CONTENT), mime_type="text/plain", purpose="fine-tune",
            part_size=len(CONTENT) // 2 + 1,
        )  # fmt: skip
        assert proxy.losses == 0
    assert _ids(installation, FILES) == [upload.file.id]


# Whatever the database does in between


@contextlib.contextmanager
def _behind_proxy(settings: ServiceSettings) -> Iterator[tuple[Installation, PostgresProxy]]:
    """An API that reaches its database through a proxy."""
    postgres = PostgresProxy(settings.required_database_url)
    changes = {"database_url": SecretStr(postgres.url), "role": "api"}
    with running(postgres), running_installation(settings.model_copy(update=changes)) as api:
        yield api, postgres


def _until_done(ask: Callable[..., Answer], by: str, key: str) -> Answer:
    """Send again what got no answer but 503, as a patient client does."""
    for retry in range(5):
        headers = {"Idempotency-Key": key} if by == "key" else {"x-stainless-retry-count": str(retry)}
        answer = until(lambda: _unless_in_use(ask(**headers)))  # noqa: B023
        if answer.status == 200:
            return answer
        assert (answer.status, answer.code) == (503, "service_unavailable")
        assert answer.headers["retry-after"]
    pytest.fail("it was never done")


def _unless_in_use(answer: Answer) -> Answer | None:
    """None while the server has not noticed that the connection is gone that asked under the key before."""
    return None if answer.status == 409 and answer.code == "idempotency_key_in_use" else answer


@pytest.mark.parametrize(
    ("by", "when"), [("key", "before"), ("key", "after"), ("retry count", "after")], ids=lambda value: value
)
def test_one_job_is_made_wherever_the_database_goes_away(settings: ServiceSettings, by: str, when: When) -> None:
    with _behind_proxy(settings) as (api, postgres):
        file_id = api.openai.files.create(file=("rows.jsonl", CONTENT), purpose="fine-tune").id
        for exchange in itertools.count(1):
            key = _key()
            postgres.cut_at(exchange, when)
            answer = _until_done(partial(_post_job, api, file_id, suffix=key), by, key)
            if not postgres.has_cut:
                break
            jobs = [job["id"] for job in send(api, "GET", JOBS).json["data"] if job["suffix"] == key]
            assert jobs == [answer.json["id"]], exchange
        assert exchange > 10


@pytest.mark.parametrize("by", ["key", "retry count"])
def test_one_file_is_made_wherever_the_database_goes_away(settings: ServiceSettings, by: str) -> None:
    with _behind_proxy(settings) as (api, postgres):
        for exchange in itertools.count(1):
            key = _key()
            content = FORM.replace(b"rows.jsonl", f"{key}.jsonl".encode())
            postgres.cut_at(exchange, "after")
            answer = _until_done(partial(_post_form, api, FILES, content), by, key)
            if not postgres.has_cut:
                break
            files = [file["id"] for file in send(api, "GET", f"{FILES}?limit=5").json["data"]
                     if file["filename"] == f"{key}.jsonl"]  # fmt: skip
            assert files == [answer.json["id"]], exchange
            assert files[0] in stored(api, "files")
        assert exchange > 5
