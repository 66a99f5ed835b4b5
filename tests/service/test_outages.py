"""Servers that are away: who asks is told in time, the process lives, and all goes on when they are back."""

import contextlib
import os
import re
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
from pydantic import SecretStr
from redis import Redis
from sqlalchemy import text

from service.settings import ServiceSettings
from storage import schema
from storage.artifacts import ArtifactStore
from storage.database import Database
from storage.embedded import start_postgres
from tests.installation import PAIRS, TINY, Installation, running_installation
from tests.processes import descendants, until
from tests.proxies import PostgresProxy, Proxy, ValkeyProxy, running
from tests.service.asking import is_refused, send
from tests.service.forms import form
from workers.reconciler import Reconciler

JOBS = "/v1/fine_tuning/jobs"
FORM = form(
    ('name="purpose"', b"fine-tune"), ('name="file"; filename="rows.jsonl"', b'{"anchor": "a", "positive": "b"}')
)


def _operations(api: Installation) -> list[tuple[str, str]]:
    """Every route under /v1, with an id that is nobody's."""
    paths = send(api, "GET", "/openapi.json").json["paths"]
    return [
        (method.upper(), re.sub(r"{(\w+)}", r"\1-0", path))
        for path, methods in paths.items()
        for method in methods
        if path.startswith("/v1")
    ]


@pytest.fixture
def postgres(settings: ServiceSettings) -> Iterator[PostgresProxy]:
    proxy = PostgresProxy(settings.required_database_url)
    with running(proxy):
        yield proxy


@pytest.fixture
def valkey(settings: ServiceSettings) -> Iterator[ValkeyProxy]:
    proxy = ValkeyProxy(settings.required_redis_url)
    with running(proxy):
        yield proxy


@pytest.fixture
def api(settings: ServiceSettings, postgres: PostgresProxy, valkey: ValkeyProxy) -> Iterator[Installation]:
    """An API that has its servers behind proxies, and the patience that it has unless told otherwise."""
    changes = {
        "role": "api",
        "database_url": SecretStr(postgres.url),
        "redis_url": SecretStr(valkey.url),
        "database_seconds": ServiceSettings.model_fields["database_seconds"].default,
    }
    with running_installation(settings.model_copy(update=changes)) as running_api:
        yield running_api


# PostgreSQL

AWAY = {"stopped": Proxy.refuse, "silent": Proxy.fall_silent}


@pytest.mark.parametrize("away", AWAY)
def test_without_its_database_every_route_says_so_in_time_and_recovers(
    api: Installation, postgres: Proxy, away: str
) -> None:
    operations = _operations(api)
    assert len(operations) > 15
    assert send(api, "GET", "/v1/files").status == 200
    AWAY[away](postgres)
    # For some seconds a key that is remembered opens the routes, which then say what is wrong with such requests.
    until(lambda: not api.service.catalogue.is_trusted)
    with ThreadPoolExecutor(len(operations)) as clients:
        answers = clients.map(lambda operation: send(api, *operation), operations)
        wrong = [operation for operation, answer in zip(operations, answers, strict=True) if not is_refused(answer)]
    assert wrong == []
    assert send(api, "GET", "/healthz").status == 200
    readiness = send(api, "GET", "/readyz")
    assert (readiness.status, readiness.json["database"], readiness.json["queue"]) == (503, "failing", "ok")
    assert readiness.headers["retry-after"]

    postgres.recover()

    until(lambda: send(api, "GET", "/v1/files").status == 200)
    assert send(api, "GET", "/readyz").status == 200
    assert api.upload(PAIRS, validated=False)


def test_more_requests_than_there_are_threads_are_all_answered_in_time(api: Installation, postgres: Proxy) -> None:
    assert send(api, "GET", "/v1/files").status == 200
    postgres.fall_silent()
    with ThreadPoolExecutor(80) as clients:
        answers = list(clients.map(lambda _: send(api, "GET", "/v1/files"), range(80)))
    assert all(map(is_refused, answers))
    postgres.recover()
    until(lambda: send(api, "GET", "/v1/files").status == 200)


def test_a_commit_that_is_never_answered_is_told_in_time_and_its_work_found_again(
    api: Installation, postgres: PostgresProxy
) -> None:
    body = {"model": TINY, "training_file": api.upload(PAIRS, validated=False)}
    key = {"Idempotency-Key": "key"}
    postgres.fall_silent_at_commit_of("kept_answers")
    assert is_refused(send(api, "POST", JOBS, body, **key))

    postgres.recover()

    until(lambda: send(api, "GET", "/v1/files").status == 200)
    again = send(api, "POST", JOBS, body, **key)
    assert (again.status, again.headers.get("idempotency-replayed")) == (200, "true")
    assert [job["id"] for job in send(api, "GET", JOBS).json["data"]] == [again.json["id"]]


@pytest.fixture
def owner(settings: ServiceSettings) -> Iterator[Database]:
    """The database, reached without the proxy."""
    database = Database(settings.required_database_url, pool_size=2)
    yield database
    database.dispose()


def test_a_row_that_somebody_keeps_is_waited_for_in_vain_but_not_for_long(api: Installation, owner: Database) -> None:
    job = api.openai.fine_tuning.jobs.create(model=TINY, training_file=api.upload(PAIRS, validated=False))
    with owner.engine.connect() as holder:
        holder.execute(text("SELECT 1 FROM jobs FOR UPDATE"))
        actions = [f"{JOBS}/{job.id}/{action}" for action in ("cancel", "pause", "resume")]
        with ThreadPoolExecutor(len(actions)) as clients:
            assert all(map(is_refused, clients.map(lambda action: send(api, "POST", action), actions)))
        # Nobody else is disturbed, nor is reading.
        assert send(api, "GET", f"{JOBS}/{job.id}").status == 200
        assert send(api, "GET", "/readyz").status == 200
    assert send(api, "POST", f"{JOBS}/{job.id}/cancel").json["status"] == "cancelled"


def test_a_table_that_somebody_keeps_leaves_the_other_routes(api: Installation, owner: Database) -> None:
    file_id = api.upload(PAIRS, validated=False)
    job = api.openai.fine_tuning.jobs.create(model=TINY, training_file=file_id)
    with owner.engine.connect() as holder:
        holder.execute(text("LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE"))
        asked = [("GET", JOBS), ("GET", f"{JOBS}/{job.id}"), ("GET", f"{JOBS}/{job.id}/events"),
                 ("POST", f"{JOBS}/{job.id}/cancel"), ("GET", f"{JOBS}/{job.id}/metrics"),
                 ("DELETE", f"/v1/files/{file_id}"), ("POST", JOBS)]  # fmt: skip
        body = {"model": TINY, "training_file": file_id}
        with ThreadPoolExecutor(len(asked)) as clients:
            answers = clients.map(lambda it: send(api, *it, body if it == ("POST", JOBS) else None), asked)
            assert [it for it, answer in zip(asked, answers, strict=True) if not is_refused(answer)] == []
        assert send(api, "GET", f"/v1/files/{file_id}").status == 200
    assert send(api, "GET", f"{JOBS}/{job.id}").status == 200


def test_without_a_connection_to_spare_requests_are_refused_in_time(api: Installation) -> None:
    with contextlib.ExitStack() as taken:
        for _ in range(40):
            taken.enter_context(api.service.database.engine.connect())
        assert is_refused(send(api, "GET", "/v1/files"))
        assert send(api, "GET", "/readyz").json["database"] == "failing"
    assert send(api, "GET", "/v1/files").status == 200


def test_a_server_that_takes_no_connection_is_away(
    api: Installation, settings: ServiceSettings, servers: tuple[str, str]
) -> None:
    name = urlsplit(settings.required_database_url).path.removeprefix("/")
    with psycopg.connect(servers[0], autocommit=True) as administrator:
        administrator.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
        # 10 s: until they are gone, not just told.
        administrator.execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = %s", [name]
        )
        assert is_refused(send(api, "GET", "/v1/files"))
        administrator.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
    until(lambda: send(api, "GET", "/v1/files").status == 200)


def test_a_transaction_of_a_frozen_process_lets_its_rows_go(settings: ServiceSettings) -> None:
    frozen = Database(settings.required_database_url, answer_seconds=2.0)
    with frozen.session_across_teams() as session:
        limit = session.scalar(
            text("SELECT setting::int FROM pg_settings WHERE name = 'idle_in_transaction_session_timeout'")
        )
    frozen.dispose()
    # A lease lasts 45 s, and its worker has to get at the row in time.
    assert 0 < limit <= 15_000


def test_a_server_that_is_stopped_in_its_tracks_and_goes_on(settings: ServiceSettings, tmp_path: Path) -> None:
    server = start_postgres(tmp_path, options={"fsync": "off"})
    try:
        migrated = Database(server.url, pool_size=1)
        schema.migrate(migrated)
        migrated.dispose()
        changes = {"database_url": SecretStr(server.url), "database_seconds": 2.0, "role": "api"}
        with running_installation(settings.model_copy(update=changes)) as api:
            assert send(api, "GET", "/v1/files").status == 200
            with _stopped(server.process.pid):
                assert is_refused(send(api, "GET", "/v1/files"))
                assert is_refused(send(api, "GET", JOBS))
                assert send(api, "GET", "/healthz").status == 200
                assert send(api, "GET", "/readyz").json["database"] == "failing"
            until(lambda: send(api, "GET", "/v1/files").status == 200)
    finally:
        server.stop()


@contextlib.contextmanager
def _stopped(pid: int) -> Iterator[None]:
    """A process and its children, without the processor."""
    family = [pid, *descendants(pid)]
    for each in family:
        os.kill(each, signal.SIGSTOP)
    try:
        yield
    finally:
        for each in family:
            os.kill(each, signal.SIGCONT)


# Valkey


@pytest.mark.parametrize("away", AWAY)
def test_without_its_queue_all_goes_on_in_time_and_what_waited_is_queued(
    api: Installation, valkey: Proxy, away: str
) -> None:
    AWAY[away](valkey)
    kind = {"Content-Type": "multipart/form-data; boundary=b"}
    file_id = send(api, "POST", "/v1/files", FORM, **kind).json["id"]
    job = send(api, "POST", JOBS, {"model": TINY, "training_file": file_id}).json
    assert job["status"] == "validating_files"
    for path in ("/v1/files", f"{JOBS}/{job['id']}", f"{JOBS}/{job['id']}/events"):
        assert send(api, "GET", path).status == 200
    for action in ("pause", "resume"):
        assert send(api, "POST", f"{JOBS}/{job['id']}/{action}").status == 200
    readiness = send(api, "GET", "/readyz")
    assert (readiness.status, readiness.json["database"], readiness.json["queue"]) == (200, "ok", "failing")

    valkey.recover()

    until(lambda: send(api, "GET", "/readyz").json["queue"] == "ok")
    redis = api.service.redis
    Reconciler(api.database, redis, ArtifactStore(api.settings.artifacts_dir)).tick()
    assert _tasks(redis) >= {f"validate_file-{file_id}"}


def _tasks(redis: Redis) -> set[str]:
    waiting = redis.lrange("rq:queue:cpu", 0, -1)
    return {re.sub(r"^(\w+-file-\w+).*", r"\1", task.decode()) for task in waiting}
