"""`likeness up`: everything on one machine, as children of one process, in one directory."""

import fcntl
import json
import os
import signal
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import Popen
from types import FrameType

import structlog
from rich.console import Console

from service.settings import ServiceSettings
from storage import schema, teams
from storage.database import Database
from storage.embedded import start_postgres, start_valkey
from storage.logs import configure_logging
from storage.processes import await_child, start_child

log = structlog.get_logger("likeness.up")

_READY_SECONDS = 120.0
_LOOK_EVERY_SECONDS = 0.2
_LOG_BYTES_KEPT = 10_000_000
#: A child that keeps dying is started again after 1, 2, 4 … up to this many seconds.
_LONGEST_BACKOFF_SECONDS = 30.0
_WORKER_GRACE_SECONDS = 20.0


class UpError(Exception):
    """`likeness up` can't start, for a reason a person can act on."""


@dataclass
class _Child:
    """A process to keep alive: how it is started, and how often it has died lately."""

    name: str
    command: list[str]
    log: Path
    env: Mapping[str, str]
    process: Popen[bytes] | None = None
    started: float = 0.0
    deaths: int = 0
    grace_seconds: float = _WORKER_GRACE_SECONDS

    def start(self) -> None:
        _rotate(self.log)
        with self.log.open("ab") as output:
            self.process = start_child(self.command, env=self.env, output=output)
        self.started = time.monotonic()

    def restart_if_dead(self) -> None:
        if self.process is None or self.process.poll() is None:
            return
        alive_for = time.monotonic() - self.started
        if alive_for < min(_LONGEST_BACKOFF_SECONDS, 2.0**self.deaths):
            return
        self.deaths = self.deaths + 1 if alive_for < _LONGEST_BACKOFF_SECONDS else 0
        log.warning("child_restarted", child=self.name, exit_code=self.process.returncode, log=str(self.log))
        self.start()


@dataclass
class _Installation:
    """What `up` has started."""

    children: list[_Child] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def watch(self) -> None:
        """Keep the children alive until told to stop."""
        while not self.stop.wait(_LOOK_EVERY_SECONDS):
            for child in self.children:
                child.restart_if_dead()

    def stop_all(self) -> None:
        """Stop all children at once, each in its own time."""
        for child in self.children:
            if child.process is not None and child.process.poll() is None:
                child.process.send_signal(signal.SIGTERM)
        for child in self.children:
            if child.process is not None:  # not asked twice, which a worker takes as: at once
                await_child(child.process, grace_seconds=child.grace_seconds)


def up(settings: ServiceSettings, *, workers: int, console: Console) -> None:
    """Run until SIGTERM or SIGINT. Raises UpError or EmbeddedServerError when something can't start."""
    configure_logging(settings.log_level)
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    installation = _Installation()
    with ExitStack() as stack:
        stack.enter_context(_only_one(settings.data_dir))
        stack.enter_context(_stopping_on_signals(installation.stop))
        settings = _with_port(settings)
        urls = _start_servers(settings, stack, console)
        key_file = _prepare_database(urls["DATABASE_URL"], settings.data_dir)
        stack.enter_context(_told(settings, urls))
        env = {**os.environ, **urls, **_environment(settings)}
        installation.children = _children(settings, env, workers)
        stack.callback(installation.stop_all)
        for child in installation.children:
            child.start()
        if _await_ready(settings, installation):
            _say_ready(settings, key_file, console)
        installation.watch()
        console.print("Stopping …")
    console.print("Stopped. Everything is kept in", settings.data_dir)


def api_url(settings: ServiceSettings) -> str:
    """Where the API answers, for a client on this machine."""
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host  # noqa: S104 — compared, not bound
    return f"http://[{host}]:{settings.port}" if ":" in host else f"http://{host}:{settings.port}"


@contextmanager
def _only_one(data_dir: Path) -> Iterator[None]:
    """Hold the directory's lock. The kernel gives it back however the process ends."""
    with (data_dir / "lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise UpError(
                f"{data_dir} is in use by the `likeness up` with pid {lock.read().strip()}. "
                "Stop that one first, or choose another --data-dir."
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


@contextmanager
def _stopping_on_signals(stop: threading.Event) -> Iterator[None]:
    def ask_to_stop(_signal: int, _frame: FrameType | None) -> None:
        stop.set()

    previous = {number: signal.signal(number, ask_to_stop) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _with_port(settings: ServiceSettings) -> ServiceSettings:
    """The settings with a port that is free now: a taken one should be told before anything starts."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            raise UpError(
                f"Can't listen on {settings.host}:{settings.port} ({error.strerror}). Choose another --host or --port."
            ) from error
        return settings.model_copy(update={"port": probe.getsockname()[1]})


def _start_servers(settings: ServiceSettings, stack: ExitStack, console: Console) -> dict[str, str]:
    """The URLs of PostgreSQL and Valkey; whichever is not given is started here."""
    if settings.database_url is not None:
        database_url = settings.required_database_url
    else:
        console.print("Starting PostgreSQL with pgvector …")
        postgres = start_postgres(settings.data_dir)
        stack.callback(postgres.stop)
        database_url = postgres.url
    if settings.redis_url is not None:
        redis_url = settings.required_redis_url
    else:
        console.print("Starting Valkey …")
        valkey = start_valkey(settings.data_dir)
        stack.callback(valkey.stop)
        redis_url = valkey.url
    return {"DATABASE_URL": database_url, "REDIS_URL": redis_url}


def _prepare_database(url: str, data_dir: Path) -> Path:
    """Migrate, and write the first key to a file only its owner can read. Returns the file."""
    key_file = data_dir / "admin.key"
    database = Database(url, pool_size=1)
    try:
        schema.migrate(database)
        if not key_file.exists():
            with database.session(teams.DEFAULT_TEAM) as session:
                _, key = teams.create_key(session, "admin")
            # Committed before it is written: a file with a key nobody knows would be worse than no file.
            _write_private(key_file, key + "\n")
    finally:
        database.dispose()
    return key_file


@contextmanager
def _told(settings: ServiceSettings, urls: Mapping[str, str]) -> Iterator[None]:
    """Tell the other commands, through a file, what runs here and where."""
    running = {
        "pid": os.getpid(),
        "api_url": api_url(settings),
        "database_url": urls["DATABASE_URL"],
        "redis_url": urls["REDIS_URL"],
    }
    settings.running_file.unlink(missing_ok=True)
    _write_private(settings.running_file, json.dumps(running))
    try:
        yield
    finally:
        settings.running_file.unlink(missing_ok=True)


def _write_private(path: Path, text: str) -> None:
    """Make a file that only its owner can read, from its first byte on."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as target:
        target.write(text)


def _environment(settings: ServiceSettings) -> dict[str, str]:
    """The settings as the children read them. URLs go the same way: an argument could be read by every user."""
    values = settings.model_dump(exclude={"database_url", "redis_url", "role"}, exclude_none=True)
    values["data_dir"] = settings.data_dir.resolve()
    return {f"LIKENESS_{name.upper()}": str(value) for name, value in values.items()}


def _children(settings: ServiceSettings, env: Mapping[str, str], workers: int) -> list[_Child]:
    commands = {
        "api": ["service.serve"],
        "worker-cpu": ["workers.worker", "cpu"],
        **{f"worker-gpu-{number}": ["workers.worker", "gpu"] for number in range(1, workers + 1)},
        "reconciler": ["workers.reconciler"],
    }
    logs = settings.data_dir / "logs"
    logs.mkdir(exist_ok=True)
    drain_seconds = settings.unready_seconds + settings.drain_seconds
    return [
        _Child(
            name,
            [sys.executable, "-m", *command],
            logs / f"{name}.log",
            env,
            grace_seconds=drain_seconds + 10 if name == "api" else _WORKER_GRACE_SECONDS,
        )
        for name, command in commands.items()
    ]


def _await_ready(settings: ServiceSettings, installation: _Installation) -> bool:
    """Wait for /readyz to say 200. False when told to stop before. Raises UpError when it takes too long."""
    deadline = time.monotonic() + _READY_SECONDS
    while not installation.stop.wait(_LOOK_EVERY_SECONDS):
        for child in installation.children:
            child.restart_if_dead()
        if is_ready(api_url(settings)):
            return True
        if time.monotonic() > deadline:
            raise UpError(f"The service did not get ready; see the logs in {settings.data_dir / 'logs'}.")
    return False


def is_ready(url: str) -> bool:
    """Whether the API at `url` says that it can do its work."""
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=35) as answer:  # noqa: S310 — our own URL
            return answer.status == 200  # type: ignore[no-any-return]
    except (urllib.error.URLError, OSError):
        return False


def _rotate(path: Path) -> None:
    if path.exists() and path.stat().st_size > _LOG_BYTES_KEPT:
        path.rename(path.with_suffix(".log.1"))


def _say_ready(settings: ServiceSettings, key_file: Path, console: Console) -> None:
    url = api_url(settings)
    console.print(f"\n[bold green]Likeness is ready[/] at {url}   (documentation: {url}/docs)")
    console.print(f"API key: in {key_file}   logs: in {settings.data_dir / 'logs'}   stop: Ctrl-C\n")
