"""A whole installation for a test: the real API on a free port, a database of its own, real workers on request."""

import json
import os
import secrets
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

import httpx2
import psycopg
import uvicorn
from openai import OpenAI

from encoders import registry
from service.app import create_app
from service.http_protocol import StrictHTTPProtocol
from service.settings import ServiceSettings
from service.state import ServiceState
from storage import attempts, jobs, queue, teams
from storage.artifacts import ArtifactStore
from storage.database import Database
from storage.manifests import sha256
from storage.processes import start_child, stop_child
from storage.tables import Team
from tests.threads import one_thread
from workers import preparing, tasks, validating
from workers.training import run
from workers.training.recorder import Attempt
from workers.training.trainer import TrainingInterrupted

#: The base model of tests: a random BERT of two layers, as fast as it is useless.
TINY = "tiny/bert"

#: The database that every test's own is a copy of.
TEMPLATE = "likeness_template"

PAIRS = [{"anchor": f"the word {word}", "positive": f"{word} said again"} for word in "abcdefghijklmnopqrst"]
HELD_OUT = [{"anchor": f"the word {word}", "positive": f"{word} said again"} for word in "uvwxyz"]


@dataclass(frozen=True)
class Installation:
    """A running API and what a test needs to talk to it and to look behind it."""

    url: str
    key: str
    settings: ServiceSettings
    database: Database
    service: ServiceState
    clients: ExitStack  # open as long as the installation runs

    @cached_property
    def openai(self) -> OpenAI:
        """OpenAI's own client, unmodified, which doesn't hide a failure behind a retry."""
        return self.clients.enter_context(OpenAI(base_url=f"{self.url}/v1", api_key=self.key, max_retries=0))

    def request(self, method: str, path: str, **arguments: Any) -> httpx2.Response:
        """Any request, with the key unless `headers` has another Authorization."""
        headers = {"Authorization": f"Bearer {self.key}", **arguments.pop("headers", {})}
        return httpx2.request(method, f"{self.url}{path}", headers=headers, timeout=60, **arguments)

    def upload(self, rows: Sequence[Mapping[str, Any]] | bytes, *, validated: bool = True) -> str:
        """Upload a dataset and, unless told otherwise, validate it as a worker does. Returns its id."""
        content = rows if isinstance(rows, bytes) else "\n".join(map(json.dumps, rows)).encode()
        file_id = self.openai.files.create(file=("rows.jsonl", content), purpose="fine-tune").id
        if validated:
            self.validate(file_id)
        return file_id

    def validate(self, file_id: str) -> None:
        """Validate a file, as a worker does whose turn it is."""
        validating.validate(self.settings, self.database, file_id, threading.Event())
        with queue.connect(self.settings.required_redis_url) as redis:
            queue.dispatch_soon(self.database, redis)

    def create_job(self, training_file: str, *, max_steps: int = 3, prepared: bool = True, **arguments: Any) -> Any:
        """Create a short job on the tiny encoder and, unless told otherwise, prepare it as a worker does."""
        hyperparameters = {"max_steps": max_steps, "batch_size": 8, **arguments.pop("hyperparameters", {})}
        loss = arguments.pop("loss", {"name": "ntxent", "temperature": 0.1})
        options = {"checkpointing": arguments.pop("checkpointing")} if "checkpointing" in arguments else {}
        method = {"type": "contrastive", "contrastive": {"loss": loss, "hyperparameters": hyperparameters, **options}}
        job = self.openai.fine_tuning.jobs.create(
            model=arguments.pop("model", TINY), training_file=training_file, method=method, **arguments
        )
        return self.prepare(job) if prepared else job

    def prepare(self, job: Any) -> Any:
        """Tokenize the job's files and queue it, as a worker does. Nothing happens while a file isn't validated."""
        preparing.prepare(self.settings, self.database, job.id, threading.Event())
        with queue.connect(self.settings.required_redis_url) as redis:
            queue.dispatch_soon(self.database, redis)
        return self.openai.fine_tuning.jobs.retrieve(job.id)

    def train(self, job: Any, *, should_stop: Callable[[], bool] = lambda: False) -> Any:
        """Train the job in this process, which has torch already. Raises TrainingInterrupted if it is to stop."""
        job = self.openai.fine_tuning.jobs.retrieve(job.id)
        database = Database(self.settings.required_database_url, pool_size=2)
        try:
            with database.session_across_teams() as session:
                assert attempts.start(session, job.id, job.attempt, "test") is not None
            with one_thread():  # as the processes have that tests start
                run.train(self.settings, database, Attempt(job.id, job.attempt), should_stop)
        finally:
            database.dispose()
        return self.openai.fine_tuning.jobs.retrieve(job.id)

    def interrupt(self, job: Any, *, after_step: int) -> Any:
        """Train the job in this process for so many steps, and give it back, as a worker does that is to stop."""
        looks = count()  # one before each step
        with suppress(TrainingInterrupted):
            self.train(job, should_stop=lambda: next(looks) >= after_step)
        with self.database.session_across_teams() as session:
            attempts.requeue(session, job.id, job.attempt, "The worker is shutting down")
        return self.openai.fine_tuning.jobs.retrieve(job.id)

    def train_as_worker(self, job: Any) -> Any:
        """Run the job's attempt here, as a worker's child does, with the real training process; other jobs wait."""
        with self.database.session_across_teams() as session:
            row = jobs.get(session, job.id)
            assert row.state == "queued"
            row.in_turn = True
        tasks.train(job.id, self.openai.fine_tuning.jobs.retrieve(job.id).attempt)
        return self.openai.fine_tuning.jobs.retrieve(job.id)

    def publish(self, job: Any) -> str:
        """End a queued job with the base model itself as its tuned model: all of a training but the training."""
        with self.database.session_across_teams() as session:
            assert attempts.start(session, job.id, job.attempt, "test") is not None
        with ArtifactStore(self.settings.artifacts_dir).publishing_model(f"{job.id}-{job.attempt}") as folder:
            base = registry.locate(job.model, self.settings.base_models_dir)
            shutil.copytree(base, folder, dirs_exist_ok=True)
            weights = sha256(folder / "model.safetensors")
        with self.database.session_across_teams() as session:
            return attempts.succeed(
                session, job.id, job.attempt, base_model=job.model, weights_sha256=weights, dimension=32,
                max_seq_length=48, trained_tokens=1,
            ).id  # fmt: skip

    def as_second_team(self) -> "Installation":
        """The same installation, asked with the key of another team."""
        with self.database.session_across_teams() as session:
            session.merge(Team(id="second", name="Second"))
        with self.database.session("second") as session:
            _, key = teams.create_key(session, "test")
        return replace(self, key=key)

    @contextmanager
    def worker(self, queue_name: str) -> Iterator[int]:
        """A real worker process on a queue. Yields its pid; stopped with SIGTERM on the way out."""
        process = start_child([sys.executable, "-m", "workers.worker", queue_name])
        try:
            yield process.pid
        finally:
            stop_child(process, sig=signal.SIGTERM, grace_seconds=30)

    def events_until_done(self, job_id: str, *, after: int = 0) -> list[tuple[str, Any]]:
        """The events of a job's stream, each with its name, up to and with `done`."""
        headers = {"Authorization": f"Bearer {self.key}", "Last-Event-ID": str(after)}
        path = f"{self.url}/v1/fine_tuning/jobs/{job_id}/events/stream"
        events: list[tuple[str, Any]] = []
        with httpx2.stream("GET", path, headers=headers, timeout=120) as stream:
            name = ""
            for line in stream.iter_lines():
                if line.startswith("event: "):
                    name = line.removeprefix("event: ")
                elif line.startswith("data: "):
                    events.append((name, json.loads(line.removeprefix("data: "))))
        return events


@contextmanager
def running_installation(settings: ServiceSettings) -> Iterator[Installation]:
    """Serve the real application on a free port, from a thread of this process."""
    application = create_app(settings)
    config = uvicorn.Config(application, port=0, http=StrictHTTPProtocol, ws="none", log_config=None, access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        thread.join(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    database = Database(settings.required_database_url, pool_size=2)
    with database.session(teams.DEFAULT_TEAM) as session:
        _, key = teams.create_key(session, "test")
    try:
        with ExitStack() as clients:
            yield Installation(f"http://127.0.0.1:{port}", key, settings, database, application.state.service, clients)
    finally:
        application.state.service.drain.begin()
        server.should_exit = True
        thread.join()
        database.dispose()


@contextmanager
def own_database(server_url: str) -> Iterator[str]:
    """The URL of a migrated database that is gone afterwards."""
    name = f"test_{secrets.token_hex(6)}"
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}")
        yield url_of_database(server_url, name)
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def url_of_database(server_url: str, name: str) -> str:
    """The URL of another database on the same server."""
    return server_url.replace("/postgres?", f"/{name}?")


def environment_of(settings: ServiceSettings) -> dict[str, str]:
    """The settings as environment variables, for workers."""
    return {
        "DATABASE_URL": settings.required_database_url,
        "REDIS_URL": settings.required_redis_url,
        "LIKENESS_DATA_DIR": str(settings.data_dir),
        "LIKENESS_BASE_MODELS_DIR": str(settings.base_models_dir or ""),
    }


def processes_of(data_dir: Path) -> list[str]:
    """The command lines of living processes that know of a data directory, by argument or environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command, environment = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes()
            except OSError:
                continue  # It has ended meanwhile.
            if str(data_dir).encode() in command + environment:
                found.append(command.replace(b"\0", b" ").decode())
    return found
