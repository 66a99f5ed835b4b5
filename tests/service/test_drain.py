"""The end of an API's process: asked for, or not."""

import contextlib
import signal
from typing import Any

import pytest
from sqlalchemy import text

from service.settings import ServiceSettings
from storage.artifacts import ArtifactStore
from tests.installation import PAIRS, Installation, running_installation
from tests.processes import until
from tests.service.api_process import ApiProcess, api_process
from tests.service.asking import port_of, send
from tests.service.edge_server import Answer, connect, read_answer
from tests.service.event_reader import reading
from tests.service.forms import form, stored

FORM = form(('name="purpose"', b"fine-tune"), ('name="file"; filename="rows.jsonl"', b'{"anchor": "a"}\n' * 5000))
HALF = len(FORM) // 2


@contextlib.contextmanager
def _half_sent(api: Installation, **headers: str) -> Any:
    """A connection on which half of an upload has been sent."""
    more = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    head = (
        f"POST /v1/files HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {api.key}\r\n{more}"
        f"Content-Type: multipart/form-data; boundary=b\r\nContent-Length: {len(FORM)}\r\n\r\n"
    )
    with contextlib.closing(connect(port_of(api))) as connection:
        connection.settimeout(60)
        connection.sendall(head.encode() + FORM[:HALF])
        # Being written: before, nobody would miss it.
        until(lambda: stored(api, "unfinished"))
        yield connection


def _upload(api: Installation, **headers: str) -> Answer:
    return send(api, "POST", "/v1/files", FORM, **{"Content-Type": "multipart/form-data; boundary=b"}, **headers)


def _job(api: Installation) -> str:
    file_id = api.upload(PAIRS)
    return api.create_job(file_id).id


# Asked for


@pytest.mark.parametrize(("unready_seconds", "status"), [(1000.0, 200), (0.0, 503)])
def test_readyz_says_no_first_and_then_work_is_refused(
    settings: ServiceSettings, unready_seconds: float, status: int
) -> None:
    changes = {"unready_seconds": unready_seconds, "role": "api"}
    with running_installation(settings.model_copy(update=changes)) as api:
        assert send(api, "GET", "/v1/files").status == 200
        api.service.drain.begin()
        readiness = send(api, "GET", "/readyz")
        assert (readiness.status, readiness.json["status"]) == (503, "stopping")
        assert send(api, "GET", "/healthz").status == 200
        for method, path in (("GET", "/v1/files"), ("POST", "/v1/fine_tuning/jobs"), ("GET", "/v1/models")):
            answer = send(api, method, path)
            if status == 503:
                assert (answer.status, answer.code) == (503, "service_unavailable")
                assert float(answer.headers["retry-after"]) > 0
                assert answer.headers["x-should-retry"] == "true"
                assert answer.headers["connection"] == "close"
                assert answer.headers["x-request-id"]
            else:
                assert answer.status != 503


def test_a_process_that_is_asked_to_stop_ends_what_it_holds(settings: ServiceSettings) -> None:
    with api_process(settings, unready_seconds=0, drain_seconds=60) as running, _half_sent(running.api) as upload:
        job_id = _job(running.api)
        with reading(running.api, job_id) as stream:
            events = stream.events()
            last = next(events)
            running.process.send_signal(signal.SIGTERM)
            # `likeness up` sends it twice.
            running.process.send_signal(signal.SIGTERM)
            for event in events:
                last = event
            assert stream.has_ended
            assert last.name != "done"
            assert stream.comments[-1].endswith(f"Last-Event-ID: {last.id}")
        assert send(running.api, "GET", "/readyz").json["status"] == "stopping"
        refused = send(running.api, "GET", f"/v1/fine_tuning/jobs/{job_id}")
        assert (refused.status, refused.headers["x-should-retry"]) == (503, "true")
        upload.sendall(FORM[HALF:])
        assert read_answer(upload).status == 200
        assert running.process.wait(timeout=60) == 0
    assert stored(running.api, "unfinished") == []


def test_a_process_that_is_asked_to_stop_waits_no_longer_than_it_may(settings: ServiceSettings) -> None:
    with api_process(settings, unready_seconds=0, drain_seconds=1) as running, _half_sent(running.api) as upload:
        running.process.send_signal(signal.SIGTERM)
        answer = read_answer(upload)
        assert (answer.status, answer.code) == (503, "service_unavailable")
        assert (answer.headers["x-should-retry"], answer.headers["connection"]) == ("true", "close")
        assert running.process.wait(timeout=60) == 0
    assert stored(running.api) == []


# Not asked for


def test_an_upload_whose_process_is_killed_leaves_nothing_and_is_sent_again_under_its_key(
    settings: ServiceSettings,
) -> None:
    key = {"Idempotency-Key": "key"}
    with api_process(settings) as running, _half_sent(running.api, **key) as upload:
        assert _upload(running.api, **key).code == "idempotency_key_in_use"
        running.process.kill()
        with contextlib.suppress(ConnectionResetError):
            assert upload.recv(1) == b""
    with api_process(settings) as running:
        api = running.api
        assert send(api, "GET", "/v1/files").json["data"] == []
        first = until(lambda: _done(_upload(api, **key)))
        again = _upload(api, **key)
        assert (again.body, again.headers["idempotency-replayed"]) == (first.body, "true")
        assert [file["id"] for file in send(api, "GET", "/v1/files").json["data"]] == [first.json["id"]]
        # What the killed one left is found where the swept things are.
        assert len(stored(api, "unfinished")) == 1
        assert ArtifactStore(settings.artifacts_dir).sweep_unfinished(older_than_seconds=-1) == 1
        assert stored(api) == [first.json["id"]]


def _done(answer: Answer) -> Answer | None:
    """The answer, unless its key is still held by the connection of the process that was killed."""
    if answer.status == 409:
        assert answer.code == "idempotency_key_in_use"
        return None
    assert answer.status == 200
    return answer


# Readers that don't read


def test_readers_that_never_read_take_little_memory(settings: ServiceSettings) -> None:
    with api_process(settings) as running:
        job_id = _job(running.api)
        _add_events(running.api, job_id, count=4000, length=5000)
        with reading(running.api, job_id) as warm_up:
            next(warm_up.events())
        before = running.resident_bytes
        with contextlib.ExitStack() as stack:
            streams = [stack.enter_context(reading(running.api, job_id)) for _ in range(10)]
            # They all have begun, and nobody has read on.
            assert all(next(stream.events()) for stream in streams)
            # Of the 200 MB that are there to be sent.
            assert _settled_bytes(running) - before < 60_000_000


def _settled_bytes(running: ApiProcess) -> int:
    """What the process takes once it takes no more. Meanwhile it serves others."""
    looks: list[int] = []
    while len(looks) < 20 or len(set(looks[-20:])) > 1:
        assert send(running.api, "GET", "/v1/files").status == 200
        looks.append(running.resident_bytes)
    return looks[-1]


def _add_events(api: Installation, job_id: str, *, count: int, length: int) -> None:
    with api.database.session_across_teams() as session:
        session.execute(
            text(
                "INSERT INTO job_events (team_id, job_id, seq, attempt, level, type, message) "
                "SELECT team_id, id, last_seq + number, 1, 'info', 'message', repeat('x', :length) "
                "FROM jobs, generate_series(1, :count) AS number WHERE id = :job"
            ),
            {"job": job_id, "count": count, "length": length},
        )
        session.execute(text("UPDATE jobs SET last_seq = last_seq + :count WHERE id = :job"),
                        {"job": job_id, "count": count})  # fmt: skip
