"""Keys and models that are remembered: no SQL for what hasn't changed, and no answer from what has."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import func, text

from api_schemas.errors import LikenessError
from service import catalogue as module
from service.catalogue import TRUST_SECONDS, Catalogue
from service.keys import Caller
from service.remembered import Remembered
from service.settings import ServiceSettings
from storage import aliases, models, teams
from storage.database import Database
from storage.tables import ApiKey
from tests.installation import PAIRS, TINY, Installation, running_installation
from tests.processes import until
from tests.proxies import PostgresProxy, running
from tests.service.api_process import api_process
from tests.service.asking import is_refused, send
from tests.service.edge_server import Answer
from tests.service.statements import statements_of_requests

TEAM = teams.DEFAULT_TEAM


@pytest.fixture
def other(shared: Installation) -> Iterator[Installation]:
    """A second process, as far as a catalogue can tell."""
    with running_installation(shared.settings) as running_api:
        until(lambda: running_api.service.catalogue.is_trusted)
        yield replace(running_api, key=shared.key)


def embed(api: Installation, model: str = TINY) -> Answer:
    return send(api, "POST", "/v1/embeddings", {"model": model, "input": "a"})


def warm(api: Installation, model: str = TINY) -> None:
    """Ask until key and model are remembered."""
    remembered = api.service.catalogue

    def is_answered_from_memory() -> bool:
        misses = remembered.misses
        assert embed(api, model).status == 200
        return remembered.misses == misses

    until(is_answered_from_memory)


@contextlib.contextmanager
def within_trust() -> Iterator[None]:
    """What happens inside may take as long as what is remembered may count, and no longer."""
    began_at = time.monotonic()
    yield
    assert time.monotonic() - began_at < TRUST_SECONDS


# In a running service


def test_a_request_whose_key_and_model_are_remembered_needs_no_sql(shared: Installation) -> None:
    warm(shared)
    remembered = shared.service.catalogue
    hits, misses = remembered.hits, remembered.misses
    with statements_of_requests() as statements:
        assert [embed(shared).status for _ in range(5)] == [200] * 5
        pairs = {"model": TINY, "pairs": [["a", "b"]]}
        assert send(shared, "POST", "/v1/similarity", pairs).status == 200
        assert statements == []
        assert send(shared, "GET", "/v1/files").status == 200
    assert statements, "so the counter counts"
    assert (remembered.hits - hits, remembered.misses - misses) == (13, 0)


def test_a_revoked_key_is_refused_by_every_process_within_moments(shared: Installation, other: Installation) -> None:
    with shared.database.session(TEAM) as session:
        row, key = teams.create_key(session, "short-lived")
    holders = [replace(each, key=key) for each in (shared, other)]
    for holder in holders:
        warm(holder)
    with shared.database.session(TEAM) as session:
        teams.revoke_key(session, row.id)
    with within_trust():
        for holder in holders:
            until(lambda holder=holder: embed(holder).status == 401)
    warm(shared)  # others' keys hold


def test_a_process_of_its_own_refuses_a_revoked_key_within_moments(settings: ServiceSettings) -> None:
    with api_process(settings) as process:
        with process.api.database.session(TEAM) as session:
            row, key = teams.create_key(session, "short-lived")
        holder = replace(process.api, key=key)
        assert {send(holder, "GET", "/v1/models").status for _ in range(3)} == {200}
        with process.api.database.session(TEAM) as session:
            teams.revoke_key(session, row.id)
        with within_trust():
            until(lambda: send(holder, "GET", "/v1/models").status == 401)
        assert send(process.api, "GET", "/v1/models").status == 200


def test_an_alias_that_moves_is_followed_at_once_here_and_within_moments_elsewhere(
    shared: Installation, other: Installation, pairs_file: str
) -> None:
    model = shared.publish(shared.create_job(pairs_file))
    for target in (TINY, model, TINY):
        assert send(shared, "PUT", "/v1/aliases/moves", {"model": target}).status == 200
        assert embed(shared, "moves").json["model_version"] == target
        with within_trust():
            until(lambda: embed(other, "moves").json.get("model_version") == target)  # noqa: B023
        warm(other, "moves")


def test_a_model_that_is_deleted_is_found_by_no_process(
    shared: Installation, other: Installation, pairs_file: str
) -> None:
    model = shared.publish(shared.create_job(pairs_file))
    warm(other, model)
    assert send(shared, "DELETE", f"/v1/models/{model}").status == 200
    assert embed(shared, model).code == "model_not_found"
    with within_trust():
        until(lambda: embed(other, model).code == "model_not_found")


def test_what_changes_while_the_listener_is_away_is_heard_of(shared: Installation, other: Installation) -> None:
    with shared.database.session(TEAM) as session:
        row, key = teams.create_key(session, "short-lived")
    holder = replace(other, key=key)
    warm(holder)
    end_listeners = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
    end_listeners += "AND query ~ 'LISTEN|pg_notify' AND pid <> pg_backend_pid()"
    with shared.database.session(TEAM) as session:
        assert session.scalars(text(end_listeners)).all()
        teams.revoke_key(session, row.id)
    until(lambda: not other.service.catalogue.is_trusted)
    assert embed(holder).status == 401
    until(lambda: other.service.catalogue.is_trusted)
    assert embed(holder).status == 401, "what was remembered before the listener was away counts again"


@pytest.fixture
def behind_proxy(settings: ServiceSettings) -> Iterator[tuple[Installation, PostgresProxy]]:
    """An API that has PostgreSQL behind a proxy."""
    proxy = PostgresProxy(settings.required_database_url)
    changes = {"database_url": SecretStr(proxy.url), "database_seconds": 1.0}
    with running(proxy), running_installation(settings.model_copy(update=changes)) as api:
        yield api, proxy


@pytest.mark.parametrize("away", [PostgresProxy.refuse, PostgresProxy.fall_silent])
def test_what_is_remembered_counts_for_seconds_only_without_the_database(
    behind_proxy: tuple[Installation, PostgresProxy], away: Callable[[PostgresProxy], None]
) -> None:
    api, proxy = behind_proxy
    warm(api)
    away(proxy)
    cut_at = time.monotonic()
    until(lambda: not api.service.catalogue.is_trusted)
    assert time.monotonic() - cut_at < TRUST_SECONDS + 0.5
    assert is_refused(embed(api))

    proxy.recover()

    until(lambda: embed(api).status == 200)
    warm(api)


def test_without_a_listener_every_request_asks_the_database(
    settings: ServiceSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deaf(*_: Any, **__: Any) -> Any:
        raise module.UnheardError("as behind a pooler")

    monkeypatch.setattr(module.NameChanges, "prove", deaf)
    with running_installation(settings) as api:
        for _ in range(3):
            assert embed(api).status == 200
        remembered = api.service.catalogue
        assert (remembered.hits, remembered.misses, remembered.is_trusted) == (0, 6, False)


# The catalogue alone


@pytest.fixture
def catalogue(database: Database, settings: ServiceSettings) -> Catalogue:
    """One that takes itself for hearing everything, and hears nothing unless told."""
    made = Catalogue(database, settings)
    made._trusted_until = float("inf")
    return made


def make_key(database: Database) -> str:
    with database.session(TEAM) as session:
        return teams.create_key(session, "laptop")[1]


def caller(catalogue: Catalogue, key: str) -> Caller | None:
    return asyncio.run(catalogue.caller(key))


def test_what_changes_while_it_is_read_is_not_remembered(
    catalogue: Catalogue, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = make_key(database)
    find = teams.find_key

    def find_and_hear(session: Any, key: str) -> Any:
        found = find(session, key)
        with database.session_across_teams() as other_session:
            teams.revoke_key(other_session, found.id)
        catalogue.forget()  # which the notification of that does, before this has been stored
        return found

    monkeypatch.setattr(teams, "find_key", find_and_hear)
    assert caller(catalogue, key) is not None
    monkeypatch.undo()

    assert caller(catalogue, key) is None
    assert catalogue.hits == 0


def test_a_model_that_changes_while_it_is_read_is_not_remembered(
    catalogue: Catalogue, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with database.session(TEAM) as session:
        aliases.put(session, "search", TINY)
    find = module.find_model

    def find_and_hear(*arguments: Any) -> Any:
        found = find(*arguments)
        with database.session(TEAM) as session:
            aliases.remove(session, "search")
        catalogue.forget()
        return found

    monkeypatch.setattr(module, "find_model", find_and_hear)
    assert asyncio.run(catalogue.model(TEAM, "search")).name == TINY
    monkeypatch.undo()

    with pytest.raises(LikenessError):
        asyncio.run(catalogue.model(TEAM, "search"))


def test_what_is_no_key_and_no_model_is_asked_for_again(catalogue: Catalogue, database: Database) -> None:
    unknown = make_key(database)
    with database.session_across_teams() as session:
        session.execute(text("DELETE FROM api_keys"))
    for _ in range(2):
        assert caller(catalogue, unknown) is None
        with pytest.raises(LikenessError):
            asyncio.run(catalogue.model(TEAM, "search"))
    assert (catalogue.hits, catalogue.misses) == (0, 4)
    with database.session(TEAM) as session:
        aliases.put(session, "search", TINY)
    assert asyncio.run(catalogue.model(TEAM, "search")).name == TINY


def test_a_name_is_its_teams_own_here_too(catalogue: Catalogue, database: Database) -> None:
    with database.session(TEAM) as session:
        aliases.put(session, "search", TINY)
    for _ in range(2):
        assert asyncio.run(catalogue.model(TEAM, "search")).name == TINY
        with pytest.raises(LikenessError):
            asyncio.run(catalogue.model("other", "search"))
    assert catalogue.hits == 1


def test_a_key_is_remembered_until_it_expires(catalogue: Catalogue, database: Database) -> None:
    key = make_key(database)
    with database.session(TEAM) as session:
        session.query(ApiKey).one().expires_at = func.clock_timestamp() + text("interval '3 seconds'")
    assert caller(catalogue, key) is not None
    assert caller(catalogue, key) is not None
    assert catalogue.hits == 1
    until(lambda: caller(catalogue, key) is None)


def test_damage_comes_to_be_known(database: Database, settings: ServiceSettings, installation: Installation) -> None:
    model = installation.publish(installation.create_job(installation.upload(PAIRS)))
    warm(installation, model)
    with database.session_across_teams() as session:
        models.record_damage(session, model, "config.json is missing")
    with within_trust():
        until(lambda: asyncio.run(installation.service.catalogue.model(TEAM, model)).damage)


def test_a_catalogue_that_was_closed_counts_no_more(database: Database, settings: ServiceSettings) -> None:
    started = Catalogue(database, settings)
    started.start()
    until(lambda: started.is_trusted)
    started.close()
    assert not started.is_trusted
    assert not started._thread.is_alive()


# What is remembered


def test_the_least_recently_used_goes_first() -> None:
    remembered: Remembered[str, int] = Remembered(2)
    for number, name in enumerate("ab"):
        remembered.put(name, number, generation=0)
    assert remembered.get("a") == 0
    remembered.put("c", 2, generation=0)
    assert [remembered.get(name) for name in "abc"] == [0, None, 2]


def test_what_was_read_before_all_was_forgotten_is_not_kept() -> None:
    remembered: Remembered[str, int] = Remembered(2)
    generation = remembered.generation
    remembered.forget()
    remembered.put("a", 1, generation=generation)
    assert remembered.get("a") is None
    remembered.put("a", 2, generation=remembered.generation)
    assert remembered.get("a") == 2
    remembered.forget()
    assert remembered.get("a") is None


def test_what_has_had_its_time_is_gone() -> None:
    remembered: Remembered[str, int] = Remembered(2)
    remembered.put("a", 1, generation=0, until=time.monotonic())
    assert remembered.get("a") is None
