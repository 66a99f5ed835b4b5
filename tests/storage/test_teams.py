from __future__ import annotations

import hashlib

import pytest
from sqlalchemy import func, select, text

from storage import teams
from storage.database import Database
from storage.tables import ApiKey
from tests.storage.rows import OTHER_TEAM, TEAM, add_team


@pytest.fixture
def key(database: Database) -> str:
    with database.session(TEAM) as session:
        return teams.create_key(session, "laptop")[1]


def find(database: Database, key: str) -> ApiKey | None:
    with database.session_across_teams() as session:
        return teams.find_key(session, key)


def test_a_new_key_is_well_formed_and_found(database: Database, key: str) -> None:
    found = find(database, key)

    assert teams.is_well_formed(key)
    assert found is not None
    assert (found.team_id, found.name) == (TEAM, "laptop")


@pytest.mark.parametrize("place", [0, 3, 20, 42, 43, 50])
def test_a_mistyped_character_is_noticed_without_the_database(key: str, place: int) -> None:
    other = "x" if key[place] != "x" else "y"

    assert not teams.is_well_formed(key[:place] + other + key[place + 1 :])


@pytest.mark.parametrize("text", ["", "lk_", "sk-abc", "lk_" + "a" * 48, "lk_" + "é" * 40 + "00000000", "\0" * 51])
def test_what_is_no_key_is_not_well_formed(text: str) -> None:
    assert not teams.is_well_formed(text)


def test_a_key_with_one_character_more_or_less_is_not_well_formed(key: str) -> None:
    assert not teams.is_well_formed(key + "0")
    assert not teams.is_well_formed(key[:-1])
    assert not teams.is_well_formed(" " + key)


def test_only_the_digest_is_stored(database: Database, key: str) -> None:
    with database.session_across_teams() as session:
        rows = session.scalars(text("SELECT to_jsonb(api_keys)::text FROM api_keys")).all()
        digest = session.scalars(select(ApiKey.digest)).one()

    secret = key.removeprefix("lk_")[4:-4]  # of the rest a hint is kept
    assert digest == hashlib.sha256(key.encode()).hexdigest()
    assert not any(secret[start : start + 8] in row for row in rows for start in range(len(secret) - 8))


def test_a_revoked_key_is_worthless_at_once(database: Database, key: str) -> None:
    with database.session(TEAM) as session:
        [row] = teams.list_keys(session)
        assert teams.revoke_key(session, row.id)

    assert find(database, key) is None


def test_revoking_twice_keeps_the_first_moment(database: Database, key: str) -> None:
    moments = []
    for _ in range(2):
        with database.session(TEAM) as session:
            [row] = teams.list_keys(session)
            assert teams.revoke_key(session, row.id)
            moments.append(session.scalar(select(ApiKey.revoked_at)))

    assert moments[0] == moments[1] is not None


def test_another_teams_key_cannot_be_revoked(database: Database, key: str) -> None:
    add_team(database)
    with database.session(TEAM) as session:
        [row] = teams.list_keys(session)

    with database.session(OTHER_TEAM) as session:
        assert not teams.revoke_key(session, row.id)
        assert teams.list_keys(session) == []

    assert find(database, key) is not None


@pytest.mark.parametrize(("offset", "works"), [("-1 second", False), ("1 hour", True)])
def test_a_key_ends_by_the_databases_clock(database: Database, key: str, offset: str, works: bool) -> None:
    with database.session(TEAM) as session:
        [row] = teams.list_keys(session)
        row.expires_at = func.clock_timestamp() + text(f"interval '{offset}'")

    assert (find(database, key) is not None) is works


def test_keys_are_listed_oldest_first(database: Database) -> None:
    for name in ("first", "second", "third"):
        with database.session(TEAM) as session:
            teams.create_key(session, name)

    with database.session(TEAM) as session:
        assert [row.name for row in teams.list_keys(session)] == ["first", "second", "third"]
