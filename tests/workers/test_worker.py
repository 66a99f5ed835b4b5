from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from redis import Redis
from rq.serializers import JSONSerializer

from service.settings import ServiceSettings
from storage import queue
from storage.artifacts import ArtifactStore
from storage.embedded import EmbeddedServer, start_valkey
from tests.installation import PAIRS, Installation, running_installation
from tests.processes import await_end, descendants, pids_with, runs, until
from tests.storage.rows import expire_lease
from tests.workers.following import long_job, messages_of, status_of, until_training
from workers.reconciler import Reconciler
from workers.worker import RUNNABLE, LikenessWorker

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
    job = long_job(installation, max_steps=300)
    with installation.worker("gpu") as pid:
        until_training(installation, job.id)
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
