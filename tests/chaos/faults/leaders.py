"""Row 19: the reconciler that leads is lost, or only the session that its lock hangs on."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import psycopg

from tests.chaos.faults.row import Row
from tests.chaos.fleet import Member
from tests.chaos.proxies import BOTH, Weather
from tests.chaos.shots import Shot, until
from tests.chaos.world import NotReachedError

_GAP_SECONDS = 15.0
#: The key of the lock, which PostgreSQL shows in halves. See storage.leadership.
_HOLDERS = """
    SELECT pid FROM pg_locks
    WHERE locktype = 'advisory' AND granted AND objsubid = 1 AND (classid::bigint << 32 | objid::bigint) = 7310041212
"""


def killed(shot: Shot) -> None:
    """SIGKILL to the leader."""

    def lose(leader: Member, _backend: int) -> None:
        shot.world.kill(leader.pid)

    _lost(shot, lose)


def stopped(shot: Shot) -> None:
    """SIGSTOP: its session stays open, and says nothing."""

    def lose(leader: Member, _backend: int) -> None:
        os.kill(leader.pid, signal.SIGSTOP)

    _lost(shot, lose, after=lambda leader: os.kill(leader.pid, signal.SIGCONT))


def terminated(shot: Shot) -> None:
    """pg_terminate_backend on the session that holds the lock."""

    def lose(_leader: Member, backend: int) -> None:
        with psycopg.connect(shot.world.fleet.postgres.url, autocommit=True) as connection:
            connection.execute("SELECT pg_terminate_backend(%s)", [backend])

    _lost(shot, lose)


def connections_recycled(shot: Shot) -> None:
    """Whatever lies between it and PostgreSQL closes its connections, as a pool does after an hour."""

    def lose(leader: Member, _backend: int) -> None:
        leader.database.reset_links()

    _lost(shot, lose)


def silenced(shot: Shot) -> None:
    """Nothing passes between the leader and PostgreSQL any more, and nobody says so."""

    def lose(leader: Member, _backend: int) -> None:
        leader.database.set(Weather(silent=BOTH))

    _lost(shot, lose, after=lambda leader: leader.database.set(Weather()))


def _lost(shot: Shot, lose: Callable[[Member, int], None], *, after: Callable[[Member], None] = lambda _: None) -> None:
    """Lose the leader while a job waits for its rescue: soon another one leads, and the job runs again."""
    world = shot.world
    with world.claim("reconcilers"):
        victim = world.victim(step=1)
        found, _ = until(lambda: _leader(shot), _GAP_SECONDS)
        if found is None:
            raise NotReachedError("nobody leads")
        leader, backend = found
        before = _terms(shot)[-1]["term"]
        lose(leader, backend)
        world.kill(*(process.pid for process in world.family_of(victim.worker.pid)))
        shot.fire(f"{leader.name}, session {backend}")
        try:
            shot.within(_GAP_SECONDS, lambda: _holders(shot) - {backend}, "another session leads")
            shot.within(
                world.lease + _GAP_SECONDS,
                lambda: (world.ledger.job(victim.job_id) or {}).get("attempt", 0) > victim.attempt,
                f"{victim.job_id} is rescued",
            )
        finally:
            after(leader)
        numbers = [row["term"] for row in _terms(shot)]
        shot.expect(numbers[-1] > before, f"nobody has begun a term after {before}")
        shot.expect(numbers == list(range(numbers[0], numbers[-1] + 1)), f"the terms are numbered {numbers}")
        shot.within(_GAP_SECONDS, lambda: _is_of_newest_term(shot), "whoever has the lock has the newest term")


def _leader(shot: Shot) -> tuple[Member, int] | None:
    """The member that leads, and the session that its lock hangs on."""
    fleet = shot.world.fleet
    for backend in _holders(shot):
        for name in fleet.named("reconciler"):
            if backend in fleet.members[name].database.backends():
                return fleet.members[name], backend
    return None


def _is_of_newest_term(shot: Shot) -> bool:
    """Whether the leader is whom the newest term names: by its host, and its process there."""
    leader = _leader(shot)
    return leader is not None and _terms(shot)[-1]["holder"].endswith(f"-{leader[0].pid}")


def _terms(shot: Shot) -> list[dict[str, Any]]:
    return shot.world.ledger.rows("SELECT term, holder FROM leader_terms ORDER BY term")


def _holders(shot: Shot) -> set[int]:
    return {row["pid"] for row in shot.world.ledger.rows(_HOLDERS)}


_KINDS = {
    "killed": killed,
    "stopped": stopped,
    "its session terminated": terminated,
    "its connections recycled": connections_recycled,
    "silenced": silenced,
}
ROWS = (Row(19, "leader lost", 20, _KINDS, alone=frozenset(_KINDS)),)
