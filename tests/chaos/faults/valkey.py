"""Row 13: the queue is killed, emptied, stopped or full; PostgreSQL knows what was in it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from redis.exceptions import OutOfMemoryError, RedisError

from tests.chaos.faults.row import Row
from tests.chaos.shots import Shot

_REBUILT_SECONDS = 15.0


def killed_and_back(shot: Shot) -> None:
    """SIGKILL; back with what its append-only file has."""
    with _jobs_on_their_way(shot):
        _killed(shot, empty=False)


def killed_and_emptied(shot: Shot) -> None:
    """SIGKILL; back with nothing."""
    with _jobs_on_their_way(shot):
        _killed(shot, empty=True)


def _killed(shot: Shot, *, empty: bool) -> None:
    fleet = shot.world.fleet
    away = shot.rng.uniform(0, 8)
    fleet.valkey.kill()
    try:
        if empty:
            fleet.valkey.forget()
        time.sleep(away)
    finally:
        fleet.on_starter(fleet.valkey.start)
    shot.fire(f"away for {away:.1f} s, {'empty' if empty else 'with its file'}")


def emptied(shot: Shot) -> None:
    """FLUSHALL, a few times."""
    with _jobs_on_their_way(shot), shot.world.fleet.valkey.connect() as valkey:
        for _ in range(shot.rng.randint(1, 4)):
            valkey.flushall()
            shot.fire("FLUSHALL")
            time.sleep(shot.rng.uniform(0, 2))


def paused(shot: Shot) -> None:
    """CLIENT PAUSE: connections stay, commands wait."""
    seconds = shot.rng.uniform(3, 12)
    with _jobs_on_their_way(shot), shot.world.fleet.valkey.connect() as valkey:
        valkey.execute_command("CLIENT", "PAUSE", str(int(seconds * 1000)))
        shot.fire(f"for {seconds:.0f} s")
        time.sleep(seconds)


def suspended(shot: Shot) -> None:
    """SIGSTOP: it accepts connections, and says nothing."""
    seconds = shot.rng.uniform(5, 20)
    with _jobs_on_their_way(shot):
        shot.world.fleet.valkey.suspend()
        shot.fire(f"for {seconds:.0f} s")
        time.sleep(seconds)
        shot.world.fleet.valkey.resume()


def full(shot: Shot) -> None:
    """At its memory's limit every write is refused."""
    with _jobs_on_their_way(shot), shot.world.fleet.valkey.connect() as valkey:
        valkey.config_set("maxmemory", "1")  # less than it has already; 0 would be as much as it likes
        try:
            valkey.set("chaos", "x")
        except OutOfMemoryError as error:
            shot.fire(str(error)[:60])
        time.sleep(shot.rng.uniform(3, 10))
        valkey.config_set("maxmemory", "0")


@contextmanager
def _jobs_on_their_way(shot: Shot) -> Iterator[None]:
    """Some jobs wait and one trains while the queue is disturbed; afterwards all that wait are in it again."""
    world = shot.world
    with world.claim("valkey"), world.watch.excusing():
        world.victim(step=1)
        orders = [world.load.order() for _ in range(2)]
        time.sleep(shot.rng.uniform(0, 2))
        yield
        for order in orders:
            shot.wait(order.accepted, _REBUILT_SECONDS)
        shot.within(_REBUILT_SECONDS, lambda: _all_queued(shot), "every waiting job is in the queue")


def _all_queued(shot: Shot) -> bool:
    """Whether the queue has as many messages as jobs wait, or nobody waits any more."""
    world = shot.world
    waiting = world.ledger.rows("SELECT count(*) AS number FROM jobs WHERE state = 'queued'")[0]["number"]
    try:
        with world.fleet.valkey.connect() as valkey:
            return int(valkey.llen("rq:queue:gpu")) >= waiting  # type: ignore[arg-type]
    except RedisError:
        return False


_KINDS = {
    "killed, back with its file": killed_and_back,
    "killed, back empty": killed_and_emptied,
    "emptied": emptied,
    "CLIENT PAUSE": paused,
    "SIGSTOP": suspended,
    "out of memory": full,
}
ROWS = (Row(13, "Valkey lost", 40, _KINDS, alone=frozenset(_KINDS)),)
