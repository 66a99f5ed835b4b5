"""One installation for all tests of a module, for those that leave nothing behind that another trips over."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr
from redis import Redis

from service.settings import ServiceSettings
from tests.installation import PAIRS, TINY, Installation, environment_of, own_database, running_installation


@pytest.fixture(scope="module")
def shared(
    servers: tuple[str, str], base_models_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Installation]:
    """A running API with the inference role."""
    with Redis.from_url(servers[1]) as redis:
        redis.flushdb()
    with own_database(servers[0]) as database_url, pytest.MonkeyPatch.context() as environment:
        settings = ServiceSettings(
            database_url=SecretStr(database_url),
            redis_url=SecretStr(servers[1]),
            data_dir=tmp_path_factory.mktemp("data"),
            base_models_dir=base_models_dir,
            default_model=TINY,
            drain_seconds=2,
            unready_seconds=0,
            database_seconds=10,
        )
        for name, value in environment_of(settings).items():
            environment.setenv(name, value)
        with running_installation(settings) as running:
            yield running


@pytest.fixture(scope="module")
def pairs_file(shared: Installation) -> str:
    """The id of a validated file of pairs."""
    return shared.upload(PAIRS)
