from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from redis import Redis

from storage.database import Database
from storage.embedded import EmbeddedServerError, _socket_directory, embedded_servers, start_postgres, start_valkey
from storage.queue import connect
from tests.processes import await_end, runs

# Starts both servers, tells their pids and waits.
PARENT = """
import sys, time
from pathlib import Path
from storage.embedded import embedded_servers
with embedded_servers(Path(sys.argv[1])) as servers:
    print(*(server.process.pid for server in servers), flush=True)
    time.sleep(600)
"""


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    """A data directory with every character a URL could trip over, below a path too long for a socket."""
    with tempfile.TemporaryDirectory(prefix="likeness-", ignore_cleanup_errors=True) as parent:
        directory = Path(parent) / ("data of ü & #1 100%25?" + "x" * 100)
        yield directory
        shutil.rmtree(_socket_directory(directory, user=None))


@pytest.fixture(scope="module")
def short_directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ü & #%25?", ignore_cleanup_errors=True) as parent:
        yield Path(parent)


def remember(postgres_url: str, redis_url: str) -> None:
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("CREATE EXTENSION vector")
        connection.execute("CREATE TABLE kept AS SELECT '[1,2]'::vector AS vector")
    with connect(redis_url) as redis:
        redis.set("kept", "yes")


def remembered(postgres_url: str, redis_url: str) -> tuple[object, object]:
    database = Database(postgres_url, pool_size=1)
    database.ping()  # by SQLAlchemy's reading of the URL as well
    database.dispose()
    with psycopg.connect(postgres_url) as connection, connect(redis_url) as redis:
        row = connection.execute("SELECT vector::text FROM kept").fetchone()
        return row and row[0], redis.get("kept")


def test_what_was_written_is_there_after_a_stop_and_a_kill_of_the_parent(directory: Path) -> None:
    with embedded_servers(directory) as (postgres, valkey):
        remember(postgres.url, valkey.url)
        stopped = [postgres.process.pid, valkey.process.pid]
    assert not any(map(runs, stopped))

    with subprocess.Popen([sys.executable, "-c", PARENT, str(directory)], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        orphans = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(orphans) == 2
        parent.kill()
    # At once, while those of before may still be ending: as somebody does who starts a killed service again.
    with embedded_servers(directory) as (postgres, valkey):
        assert remembered(postgres.url, valkey.url) == ("[1,2]", b"yes")
    await_end(*orphans)


def test_a_directory_with_odd_characters_and_room_for_the_socket_works(short_directory: Path) -> None:
    valkey = start_valkey(short_directory)
    try:
        with connect(valkey.url) as redis:
            assert redis.ping()
        assert (short_directory / "sockets" / "valkey.sock").exists()
    finally:
        valkey.stop()


def test_a_relative_directory_is_one_of_the_process_that_starts_the_servers(
    short_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(short_directory)
    with embedded_servers(Path("beside")) as (postgres, valkey):
        remember(postgres.url, valkey.url)
    assert (short_directory / "beside" / "postgres" / "PG_VERSION").exists()
    assert (short_directory / "beside" / "valkey" / "appendonlydir").exists()


def test_valkey_keeps_every_write_and_evicts_nothing(short_directory: Path) -> None:
    valkey = start_valkey(short_directory)
    try:
        with Redis.from_url(valkey.url, decode_responses=True) as redis:
            redis.set("kept", "yes")
            assert redis.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
            assert redis.config_get("port") == {"port": "0"}
        valkey.process.send_signal(signal.SIGKILL)
        valkey.process.wait()
        valkey = start_valkey(short_directory)
        with Redis.from_url(valkey.url, decode_responses=True) as redis:
            assert redis.get("kept") == "yes"
    finally:
        valkey.stop()


def test_a_server_that_cannot_start_says_where_its_log_is(directory: Path) -> None:
    with pytest.raises(EmbeddedServerError, match=r"postgres\.log"):
        start_postgres(directory, options={"shared_buffers": "nonsense"})

    assert "nonsense" in (directory / "postgres.log").read_text()
