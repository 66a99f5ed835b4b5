"""Aliases' rows: a team's own, moved without a gap, and a hold on the model that they stand for."""

from __future__ import annotations

import threading

import pytest

from api_schemas.errors import LikenessError
from storage import aliases, models
from storage.database import Database
from storage.tables import Alias
from tests.processes import until
from tests.storage.rows import OTHER_TEAM, TEAM, add_job, add_team, job_of
from tests.storage.test_models import delete, refused, waits_for_a_lock


@pytest.fixture
def model(database: Database) -> str:
    """The name of a tuned model."""
    name = job_of(database, add_job(database, "succeeded")).fine_tuned_model
    assert name is not None
    return name


def put(database: Database, name: str, model: str, *, team: str = TEAM) -> Alias:
    with database.session(team) as session:
        return aliases.put(session, name, model)


def names(database: Database, *, team: str = TEAM) -> list[str]:
    with database.session(team) as session:
        return [row.name for row in aliases.list_aliases(session, after=None, limit=100)[0]]


def test_an_alias_is_made_once_and_keeps_its_times_until_it_moves(database: Database, model: str) -> None:
    first = put(database, "search", "tiny/bert")
    again = put(database, "search", "tiny/bert")
    moved = put(database, "search", model)

    assert (again.created_at, again.updated_at) == (first.created_at, first.updated_at)
    assert (moved.model, moved.created_at) == (model, first.created_at)
    assert moved.updated_at > first.updated_at
    assert names(database) == ["search"]


def test_an_alias_is_its_teams_own(database: Database) -> None:
    add_team(database)
    put(database, "search", "tiny/bert")
    put(database, "search", "scratch", team=OTHER_TEAM)

    with database.session(TEAM) as session:
        assert aliases.get(session, "search").model == "tiny/bert"
    with database.session(OTHER_TEAM) as session:
        aliases.remove(session, "search")
        assert aliases.find(session, "search") is None
    assert (names(database), names(database, team=OTHER_TEAM)) == (["search"], [])


def test_what_is_no_alias_is_not_found(database: Database) -> None:
    for act in (aliases.get, aliases.remove):
        with pytest.raises(LikenessError) as refusal, database.session(TEAM) as session:
            act(session, "nobody")
        assert refusal.value.code == "not_found"


def test_aliases_are_listed_by_name_a_page_at_a_time(database: Database) -> None:
    for name in ("c", "a", "b"):
        put(database, name, "tiny/bert")

    with database.session(TEAM) as session:
        pages = [aliases.list_aliases(session, after=after, limit=2) for after in (None, "b", "c")]

    assert [([row.name for row in rows], more) for rows, more in pages] == [
        (["a", "b"], True),
        (["c"], False),
        ([], False),
    ]


def test_a_model_that_aliases_stand_for_is_kept_and_they_are_named(database: Database, model: str) -> None:
    for name in ("d", "c", "b", "a"):
        put(database, name, model)

    refusal = refused(database, model)

    assert (refusal.code, refusal.status) == ("model_in_use", 409)
    assert "a, b, c and 1 more" in refusal.message
    assert refusal.headers["x-should-retry"] == "false"
    for name in ("a", "b", "c"):
        put(database, name, "tiny/bert")
    with database.session(TEAM) as session:
        aliases.remove(session, "d")
    delete(database, model)


def test_no_alias_comes_to_stand_for_a_model_that_is_deleted(database: Database, model: str) -> None:
    delete(database, model)

    with pytest.raises(LikenessError) as refusal:
        put(database, "search", model)

    assert refusal.value.code == "model_not_found"
    assert names(database) == []


def test_a_deletion_waits_for_an_alias_that_is_being_made_and_then_finds_it(database: Database, model: str) -> None:
    refusals: list[str] = []

    def try_to_delete() -> None:
        with pytest.raises(LikenessError) as refusal:
            delete(database, model)
        refusals.append(refusal.value.code)

    deletion = threading.Thread(target=try_to_delete)
    with database.session(TEAM) as session:
        aliases.put(session, "search", model)
        deletion.start()
        until(lambda: waits_for_a_lock(database))
    deletion.join()

    assert refusals == ["model_in_use"]
    with database.session(TEAM) as session:
        assert models.find(session, model) is not None
