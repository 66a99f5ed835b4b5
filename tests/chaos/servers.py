"""A fleet's PostgreSQL and Valkey, which can be crashed, emptied, stopped and started again."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import psycopg
from redis import Redis

from storage.embedded import EmbeddedServer, start_postgres, start_valkey

#: May read every table and write none: what the judge looks through.
JUDGE = "chaos_judge"
# A crash of the server loses nothing that its kernel has; only a loss of power would, which is not tried here.
# When each row was committed, the judge asks.
_OPTIONS = {
    "fsync": "off", "full_page_writes": "off", "log_min_messages": "fatal", "track_commit_timestamp": "on",
}  # fmt: skip


class ServerAwayError(Exception):
    """The server was stopped, by a fault or for good."""


class Postgres:
    """The record. Methods that start it must be called on a thread that lives as long as the fleet."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._server: EmbeddedServer | None = None

    def start(self) -> None:
        self._server = start_postgres(self._folder, options=_OPTIONS)

    def crash(self) -> None:
        """End it at once, without a checkpoint: what `pg_ctl stop -m immediate` does."""
        self._end(signal.SIGQUIT)

    def stop(self) -> None:
        if self._server is not None:
            self._server.stop()
            self._server = None

    @property
    def url(self) -> str:
        """The superuser's URL, on the Unix socket, past every proxy."""
        if self._server is None:
            raise ServerAwayError("PostgreSQL is stopped")
        return self._server.url

    @property
    def socket(self) -> Path:
        """Where it listens, also while it is away."""
        return Path(unquote(parse_qs(urlsplit(self.url).query)["host"][0])) / ".s.PGSQL.5432"

    def make_judge(self) -> None:
        """A role that may read and nothing else, for a schema that is there already."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(f"CREATE ROLE {JUDGE} LOGIN")
            connection.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {JUDGE}")
            connection.execute(f"GRANT pg_read_all_stats TO {JUDGE}")

    def _end(self, sig: signal.Signals) -> None:
        assert self._server is not None
        os.kill(self._server.process.pid, sig)
        self._server.process.wait(timeout=30)


class Valkey:
    """The queue. As with PostgreSQL, it is started on a thread that lives as long as the fleet."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._server: EmbeddedServer | None = None

    def start(self) -> None:
        self._server = start_valkey(self._folder)

    def kill(self) -> None:
        """SIGKILL; its append-only file stays."""
        assert self._server is not None
        self._server.process.kill()
        self._server.process.wait(timeout=30)

    def forget(self) -> None:
        """Remove what a killed one has kept: it begins again with nothing."""
        shutil.rmtree(self._folder / "valkey", ignore_errors=True)

    def stop(self) -> None:
        if self._server is not None:
            self.resume()
            self._server.stop()
            self._server = None

    def suspend(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._server is not None
        return self._server.process

    @property
    def socket(self) -> Path:
        assert self._server is not None
        return Path(unquote(urlsplit(self._server.url).path))

    def connect(self) -> Redis:
        """A client of the driver's own, past every proxy."""
        return Redis(unix_socket_path=str(self.socket), socket_timeout=5)
