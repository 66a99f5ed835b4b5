"""Real servers for all tests: one PostgreSQL and one Valkey a run, a database of its own for each test."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
import structlog
from pydantic import SecretStr
from redis import Redis

from service.settings import ServiceSettings
from storage import schema
from storage.database import Database
from storage.embedded import embedded_servers
from tests.encoders.tiny_encoder import write_tiny_encoder
from tests.installation import (
    TEMPLATE,
    TINY,
    Installation,
    environment_of,
    own_database,
    running_installation,
    url_of_database,
)
from tests.proxies import PostgresProxy, running

#: Under xdist, in the process that starts the others: where their servers are.
_servers_of_run: tuple[str, str] | None = None

# Durability costs most of a test's time and protects nothing here: the directory goes with the run.
_FAST = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


#: Files of few tests that take long, for they start whole installations: first, so that no process of the run ends with
#: one of them while the other has nothing left to do.
_LONG = (
    "workers/test_worker.py", "service/test_up.py", "workers/test_tasks.py", "chaos/test_short.py",
    "workers/training/test_several_processes.py", "workers/training/test_run.py",
    "workers/training/test_checkpoints.py",
)  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    """Keep xdist from beginning with the files of many tests, which are the quick ones."""
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take long first; all others in their order."""
    folder = Path(__file__).parent
    places = {folder / name: place for place, name in enumerate(_LONG)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.fixture(scope="session", autouse=True)
def _environment() -> None:
    # For the processes that tests start: as many run side by side, and what is compared with what a test computes
    # itself, in one thread, must be computed in one.
    os.environ["OMP_NUM_THREADS"] = "1"
    # Lines of requests that end after a test's output was taken would land in the report.
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    # A developer's own settings must not reach a test, nor a test another's servers.
    for name in list(os.environ):
        if name.startswith("LIKENESS_") or name in ("DATABASE_URL", "REDIS_URL"):
            del os.environ[name]


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Under xdist: start the servers once, before the first of its processes, and tell each where they are."""
    if _servers_of_run is None:
        _start_for_run(node.config)
    node.workerinput["servers"] = _servers_of_run


def _start_for_run(config: pytest.Config) -> None:
    global _servers_of_run
    running = ExitStack()
    config.add_cleanup(running.close)
    _servers_of_run = running.enter_context(_running_servers())


@pytest.fixture(scope="session")
def servers(request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    """The URLs of PostgreSQL and Valkey."""
    told = getattr(request.config, "workerinput", None)
    if told is None:
        with _running_servers() as urls:
            yield urls
        return
    # The tests of one process empty their Valkey, so each process has a database there of its own.
    database_url, redis_url = told["servers"]
    yield database_url, redis_url.replace("db=0", f"db={told['workerid'].removeprefix('gw')}")


@contextmanager
def _running_servers() -> Iterator[tuple[str, str]]:
    # Not below pytest's own directory: every run makes that one private again, and as root PostgreSQL is another user.
    with (
        tempfile.TemporaryDirectory(prefix="likeness-", ignore_cleanup_errors=True) as directory,
        embedded_servers(Path(directory), postgres_options=_FAST) as (postgres, valkey),
    ):
        with psycopg.connect(postgres.url, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {TEMPLATE}")
        database = Database(url_of_database(postgres.url, TEMPLATE))
        schema.migrate(database)
        database.dispose()
        yield postgres.url, valkey.url


@pytest.fixture
def database_url(servers: tuple[str, str]) -> Iterator[str]:
    """A migrated database of the test's own."""
    with own_database(servers[0]) as url:
        yield url


@pytest.fixture
def proxy(database_url: str) -> Iterator[PostgresProxy]:
    """A way to the test's database that can be made to swallow what it is given."""
    proxy = PostgresProxy(database_url)
    with running(proxy):
        yield proxy


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = Database(database_url, pool_size=5)
    yield database
    database.dispose()


@pytest.fixture
def redis_url(servers: tuple[str, str]) -> str:
    """An empty Valkey."""
    with Redis.from_url(servers[1]) as redis:
        redis.flushdb()
    return servers[1]


@pytest.fixture(scope="session")
def base_models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of base models with the tiny encoder in it."""
    directory = tmp_path_factory.mktemp("base-models")
    write_tiny_encoder(directory / TINY)
    return directory


@pytest.fixture
def settings(
    database_url: str, redis_url: str, base_models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> ServiceSettings:
    """Settings of an installation of the test's own, also in the environment, where workers look for them."""
    settings = ServiceSettings(
        database_url=SecretStr(database_url),
        redis_url=SecretStr(redis_url),
        data_dir=tmp_path / "data",
        base_models_dir=base_models_dir,
        drain_seconds=2,
        unready_seconds=0,
        database_seconds=10,
    )
    for name, value in environment_of(settings).items():
        monkeypatch.setenv(name, value)
    return settings


@pytest.fixture
def installation(settings: ServiceSettings) -> Iterator[Installation]:
    """A running API with the inference role."""
    with running_installation(settings) as running:
        yield running
