from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from openai import APIStatusError
from pydantic import SecretStr
from redis import Redis
from rq.serializers import JSONSerializer

from service.settings import ServiceSettings
from storage import queue, schema
from storage.artifacts import ArtifactStore
from storage.database import Database
from storage.embedded import EmbeddedServer, start_postgres, start_valkey
from storage.processes import start_child, stop_child
from tests.installation import PAIRS, Installation, running_installation
from tests.processes import await_end, descendants, pids_with, runs, until
from tests.storage.rows import expire_lease
from tests.workers import stub_trainings
from tests.workers.following import long_job, messages_of, status_of, until_training
from workers.reconciler import Reconciler
from workers.worker import RUNNABLE, LikenessWorker, ListedTask

GPU = "rq:queue:gpu"


@pytest.fixture
def redis(settings: ServiceSettings) -> Iterator[Redis]:
    with queue.connect(settings.required_redis_url) as connection:
        yield connection


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that is there as soon as anybody imports the module `canary`, which workers can."""
    sign = tmp_path / "canary-was-imported"
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "canary.py").write_text(f"import pathlib\npathlib.Path({str(sign)!r}).touch()\ndef sing(*_): pass\n")
    monkeypatch.setenv("PYTHONPATH", f"{modules}:{Path.cwd()}")
    subprocess.run([sys.executable, "-c", "import canary"], check=True)
    sign.unlink()  # raises unless the canary works
    return sign


class Unpickled:
    """A pickle that imports the canary when it is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return __import__, ("canary",)


def message(function: str, *arguments: object, **members: object) -> dict[str, Any]:
    """What RQ keeps of a task, with the members that somebody with access to Valkey would add."""
    data = zlib.compress(json.dumps([function, None, list(arguments), {}]).encode())
    return {
        "data": data,
        "origin": "gpu",
        "status": "queued",
        "created_at": "2030-01-01T00:00:00.000000Z",
        "timeout": "-1",
        **members,
    }


def hostile_messages(canary: Path) -> dict[str, dict[str, Any]]:
    harmless = (queue.TRAIN, "ftjob-unknown", 1)
    return {
        "shell": message("os.system", f"touch {canary}"),
        "unknown": message("canary.sing"),
        "no-function": message(""),
        "method": {**message("x"), "data": json.dumps(["sing", "canary", [], {}])},
        "pickle": {**message("x"), "data": zlib.compress(pickle.dumps(Unpickled()))},
        "garbage": {**message("x"), "data": b"\xff\xfe{[\0"},
        "large": {**message("x"), "data": b"[" * 1_000_000},
        "number": {**message("x"), "data": b"5"},
        "no-data": {"origin": "gpu"},
        "no-time": message(*harmless, created_at="yesterday"),
        "no-status": message(*harmless, status="excellent"),
        "no-timeout": message(*harmless, timeout="soon", result_ttl="long", failure_ttl="{}"),
        "no-text": {**message(*harmless), "origin": b"\xff", "worker_name": b"\xff"},
        "unreadable-name": {**message(*harmless), b"\xff": b"\xff"},
        "callbacks": message(
            *harmless,
            success_callback_name="canary.sing",
            failure_callback_name="canary.sing",
            stopped_callback_name="canary.sing",
        ),
        "failing-callback": message(queue.TRAIN, {"not": "an id"}, failure_callback_name="canary.sing"),
        "dependencies": message(*harmless, dependency_ids="[1, {", retries_left="many", repeats_left="x"),
        "webhooks": message(*harmless, webhooks='[{"url": "http://127.0.0.1:9/"}]', rate_limit_key="x"),
        "arguments": message(queue.TRAIN, *range(10)),
    }


def test_hostile_and_malformed_messages_are_dropped_and_the_worker_goes_on(
    installation: Installation, redis: Redis, canary: Path
) -> None:
    for name, members in hostile_messages(canary).items():
        redis.hset(f"rq:job:{name}", mapping=members)
        redis.rpush(GPU, name)
    redis.set("rq:job:string", "no hash")
    redis.rpush(GPU, "string", "absent", "", "with spaces", b"\xff\xfe", "a:b:c", "x" * 100_000)
    # A task whose worker died: RQ's own tidying would call its failure callback.
    redis.hset("rq:job:abandoned", mapping=message(queue.TRAIN, "x", 1, failure_callback_name="canary.sing"))
    redis.zadd("rq:wip:gpu", {"abandoned:execution": 1, "shell:execution": 1})
    job = installation.create_job(installation.upload(PAIRS))

    with installation.worker("gpu") as pid:
        until(lambda: status_of(installation, job.id) == "succeeded")
        until(lambda: redis.llen(GPU) == 0)  # the job's own message was the last
        assert not canary.exists()
        assert runs(pid)
        maps = Path(f"/proc/{pid}/maps").read_text()
        assert "libpython" in maps or "python" in maps
        assert "libtorch" not in maps, "the parent must stay able to fork, and small"


def test_a_queue_that_is_no_list_is_survived(installation: Installation, redis: Redis) -> None:
    redis.set("rq:queue:cpu", "no list")

    with installation.worker("cpu") as pid:
        first = until(lambda: redis.smembers("rq:workers"))
        until(lambda: redis.smembers("rq:workers") - first)  # it began again
        redis.delete("rq:queue:cpu")
        file_id = installation.upload(PAIRS, validated=False)
        until(lambda: installation.openai.files.retrieve(file_id).status == "processed")
        assert runs(pid)


def is_pending(pid: int, number: signal.Signals) -> bool:
    """Whether a signal was sent to a process that it has not received yet; two at once would be one."""
    status = Path(f"/proc/{pid}/status").read_text() if runs(pid) else ""
    pending = [line.split()[1] for line in status.splitlines() if line.startswith("ShdPnd")]
    return any(int(mask, 16) >> (number - 1) & 1 for mask in pending)


def test_sigterm_gives_the_running_job_back_and_ends_the_worker(installation: Installation) -> None:
    job = long_job(installation)

    with installation.worker("gpu") as pid:
        until_training(installation, job.id)
        family = [pid, *descendants(pid)]
        assert len(family) == 3
        os.kill(pid, signal.SIGTERM)
        await_end(*family)

    again = installation.openai.fine_tuning.jobs.retrieve(job.id)
    assert (again.status, again.attempt) == ("queued", 2)
    assert "The worker is shutting down" in messages_of(installation, job.id)[-1]
    assert pids_with(job.id) == []


def test_a_killed_worker_takes_its_training_along_and_another_finishes_the_job(
    installation: Installation, redis: Redis
) -> None:
    job = installation.create_job(installation.upload(PAIRS))
    with stub_trainings.worker(stub_trainings.WAITS) as pid:
        until(lambda: pids_with(job.id))
        children = descendants(pid)
        assert len(children) == 2
        os.kill(pid, signal.SIGKILL)
        await_end(*children)
    assert status_of(installation, job.id) == "running"  # nobody could say so

    expire_lease(installation.database, job.id)
    Reconciler(installation.database, redis, ArtifactStore(installation.settings.artifacts_dir)).tick()
    assert status_of(installation, job.id) == "queued"
    with installation.worker("gpu"):
        until(lambda: status_of(installation, job.id) == "succeeded")

    assert installation.openai.fine_tuning.jobs.retrieve(job.id).attempt == 2
    assert any("fell silent" in message for message in messages_of(installation, job.id))


def test_a_second_sigterm_ends_a_training_that_does_not_stop_at_once_and_gives_the_job_back(
    installation: Installation, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIKENESS_STOP_SECONDS", "3600")
    job = installation.create_job(installation.upload(PAIRS))
    with stub_trainings.worker(stub_trainings.DEAF) as pid:
        until(lambda: pids_with(job.id))
        family = [pid, *descendants(pid)]
        assert len(family) == 3
        os.kill(pid, signal.SIGTERM)
        until(lambda: not is_pending(pid, signal.SIGTERM))

        def ends_when_told_again() -> bool:
            # More than once: one that comes before the first was looked at is the same as that.
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
            return not any(map(runs, family))

        until(ends_when_told_again)

    again = installation.openai.fine_tuning.jobs.retrieve(job.id)
    assert (again.status, again.attempt) == ("queued", 2)
    assert again.interruptions == {"crashes": 0, "out_of_memory": 0, "preemptions": 1}


def test_a_task_that_is_killed_is_told_of_at_once_by_its_worker_which_goes_on(installation: Installation) -> None:
    job = installation.create_job(installation.upload(PAIRS))
    with stub_trainings.worker(stub_trainings.WAITS) as pid:
        [training] = until(lambda: pids_with(job.id))
        [watcher] = descendants(pid)[:1]
        os.kill(watcher, signal.SIGKILL)
        await_end(training)
        [again] = until(lambda: [new for new in pids_with(job.id) if new != training])

        assert runs(pid)
        assert runs(again)
        found = installation.openai.fine_tuning.jobs.retrieve(job.id)
        assert (found.status, found.attempt, found.interruptions["crashes"]) == ("running", 2, 1)
        assert any("The training's watcher was killed by SIGKILL" in said for said in messages_of(installation, job.id))


def test_a_task_that_was_frozen_for_longer_than_its_lease_ends_when_it_thaws_and_harms_nobody(
    installation: Installation, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIKENESS_LEASE_SECONDS", "5")
    job = installation.create_job(installation.upload(PAIRS))
    reconciler = Reconciler(installation.database, redis, ArtifactStore(installation.settings.artifacts_dir))
    with stub_trainings.worker(stub_trainings.DEAF) as pid:
        [training] = until(lambda: pids_with(job.id))
        family = descendants(pid)
        for each in family:
            os.kill(each, signal.SIGSTOP)
        with stub_trainings.worker(stub_trainings.DEAF):
            until(lambda: reconciler.tick() or [new for new in pids_with(job.id) if new != training])
            for each in family:
                os.kill(each, signal.SIGCONT)
            await_end(*family)

            assert runs(pid)
            found = installation.openai.fine_tuning.jobs.retrieve(job.id)
            assert (found.status, found.attempt) == ("running", 2)
            assert found.interruptions == {"crashes": 1, "out_of_memory": 0, "preemptions": 0}


def test_each_start_of_a_worker_has_another_name(installation: Installation, redis: Redis) -> None:
    def name_of_a_worker(*before: bytes) -> bytes:
        with installation.worker("cpu"):
            [name] = until(lambda: redis.smembers("rq:workers") - set(before))
        return name

    first = name_of_a_worker()
    assert name_of_a_worker(first) != first


def test_no_process_of_a_worker_tells_others_where_its_servers_are(installation: Installation) -> None:
    job = installation.create_job(installation.upload(PAIRS))
    with stub_trainings.worker(stub_trainings.WAITS) as pid:
        until(lambda: pids_with(job.id))
        family = [pid, *descendants(pid)]
        assert len(family) == 3
        told = b"".join(Path(f"/proc/{each}/cmdline").read_bytes() for each in family)

    urls = (installation.settings.required_redis_url, installation.settings.required_database_url)
    assert not any(url.partition("://")[2].encode() in told for url in urls)


def test_how_long_a_task_takes_and_what_becomes_of_it_is_not_for_its_message_to_say(redis: Redis) -> None:
    redis.hset("rq:job:x", mapping=message(queue.TRAIN, "ftjob-1", 1, timeout="180", result_ttl="500", failure_ttl="9"))

    task = ListedTask.fetch("x", connection=redis, serializer=JSONSerializer)

    assert (task.timeout, task.result_ttl, task.failure_ttl) == (-1, 0, 0)
    assert not task.retries_left
    assert not task.should_retry


def test_a_worker_has_one_queue_and_takes_no_commands(installation: Installation, redis: Redis) -> None:
    with installation.worker("cpu"):
        [name] = until(lambda: redis.smembers("rq:workers"))

        assert redis.hget(name, "queues") == b"cpu"
        assert redis.pubsub_channels() == []


def test_sigterm_ends_an_idle_worker(installation: Installation, redis: Redis) -> None:
    with installation.worker("cpu") as pid:
        until(lambda: redis.smembers("rq:workers"))
        os.kill(pid, signal.SIGTERM)
        await_end(pid)


def test_a_worker_validates_files(installation: Installation) -> None:
    good = installation.upload(PAIRS, validated=False)
    bad = installation.upload(b'{"anchor": "only"}\n', validated=False)

    with installation.worker("cpu"):
        until(lambda: installation.openai.files.retrieve(good).status == "processed")
        until(lambda: installation.openai.files.retrieve(bad).status == "error")


# --- PostgreSQL away ---

_FAST = {"fsync": "off", "full_page_writes": "off"}


@pytest.fixture
def postgres_directory() -> Iterator[Path]:
    """Not below pytest's own, as in tests/conftest.py."""
    with tempfile.TemporaryDirectory(prefix="likeness-", ignore_cleanup_errors=True) as directory:
        yield Path(directory)


@pytest.fixture
def own_postgres(
    postgres_directory: Path, settings: ServiceSettings, monkeypatch: pytest.MonkeyPatch
) -> Iterator[EmbeddedServer]:
    """A server of the test's own, migrated, which the processes that it starts are told of."""
    server = start_postgres(postgres_directory, options=_FAST)
    database = Database(server.url, pool_size=1)
    schema.migrate(database)
    database.dispose()
    monkeypatch.setenv("DATABASE_URL", server.url)
    yield server
    server.stop()


def test_a_postgresql_that_is_away_for_longer_than_a_lease_stops_the_training_and_nobody_needs_to_be_restarted(
    settings: ServiceSettings, own_postgres: EmbeddedServer, postgres_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIKENESS_LEASE_SECONDS", "5")
    settings = settings.model_copy(update={"database_url": SecretStr(own_postgres.url)})
    with running_installation(settings) as installation, stub_trainings.worker(stub_trainings.LEAVES) as pid:
        job = installation.create_job(installation.upload(PAIRS))
        reconciler = start_child([sys.executable, "-m", "workers.reconciler"])
        [first] = until(lambda: pids_with(job.id))
        own_postgres.process.send_signal(signal.SIGQUIT)  # no checkpoint of its own, as after a crash
        own_postgres.process.wait()
        await_end(first)
        back = start_postgres(postgres_directory, options=_FAST)
        try:
            [second] = until(lambda: pids_with(job.id))
            found = until(lambda: job_while_healing(installation, job.id))
            assert (found.status, found.attempt) == ("running", 2)
            assert found.interruptions == {"crashes": 0, "out_of_memory": 0, "preemptions": 1}
            assert runs(second)
            assert runs(pid)
            assert reconciler.poll() is None
        finally:
            stop_child(reconciler, sig=signal.SIGTERM, grace_seconds=30)
            os.kill(pid, signal.SIGTERM)
            await_end(pid)
            back.stop()


def job_while_healing(installation: Installation, job_id: str) -> Any:
    """The job, or None while the API says that its database is away."""
    try:
        return installation.openai.fine_tuning.jobs.retrieve(job_id)
    except APIStatusError as error:
        if error.status_code != 503:
            raise
        return None


# --- Valkey away ---


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[EmbeddedServer]:
    server = start_valkey(tmp_path)
    yield server
    server.stop()


def test_a_valkey_that_is_killed_and_comes_back_empty_costs_no_job(
    settings: ServiceSettings, valkey: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", valkey.url)
    settings = settings.model_copy(update={"redis_url": SecretStr(valkey.url)})
    with running_installation(settings) as installation, installation.worker("gpu") as pid:
        running = long_job(installation, max_steps=300)
        until_training(installation, running.id)
        valkey.process.kill()
        valkey.process.wait()
        shutil.rmtree(tmp_path / "valkey")
        waiting = long_job(installation, max_steps=3)
        until(lambda: status_of(installation, running.id) == "succeeded")
        assert status_of(installation, waiting.id) == "queued"

        back = start_valkey(tmp_path)
        try:
            with queue.connect(back.url) as redis:
                Reconciler(installation.database, redis, ArtifactStore(settings.artifacts_dir)).tick()
            until(lambda: status_of(installation, waiting.id) == "succeeded")
            assert runs(pid)
            assert installation.openai.fine_tuning.jobs.retrieve(running.id).attempt == 1
        finally:
            os.kill(pid, signal.SIGTERM)
            await_end(pid)
            back.stop()


def test_a_task_goes_on_when_valkey_cannot_be_told_so(valkey: EmbeddedServer) -> None:
    with queue.connect(valkey.url) as redis:
        worker = LikenessWorker(["gpu"], connection=redis, serializer=JSONSerializer)
        worker.register_birth()
        queue.enqueue(redis, queue.TRAIN, ["ftjob-1", 1])
        task = worker.queues[0].jobs[0]
        execution = worker.prepare_execution(task)
        worker.maintain_heartbeats(task, execution)
        valkey.stop()

        worker.maintain_heartbeats(task, execution)


def test_every_task_that_may_be_queued_can_be_run() -> None:
    assert set(RUNNABLE) == set(queue.TASKS)
