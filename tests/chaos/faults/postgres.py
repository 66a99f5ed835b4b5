"""Rows 8, 9 and 12: PostgreSQL crashes, its answer to a commit is lost, or it has nothing left to give."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

import psycopg

from tests.chaos.faults.row import Row
from tests.chaos.proxies import Weather
from tests.chaos.shots import Shot

_BACK_SECONDS = 5.0
_FIRE_SECONDS = 40.0
_MOST_CONNECTIONS = 200


def crashed(shot: Shot) -> None:
    """Ended without a checkpoint, and started again after a while."""
    world = shot.world
    victim = world.victim(step=1)
    away = shot.rng.choice((0, 1, world.lease / 2, world.lease, 2 * world.lease, shot.rng.uniform(5, 20)))
    client = world.load.client("prober")
    with world.claim("postgres"), world.watch.excusing():
        world.fleet.postgres.crash()
        shot.fire(f"away for {away:.1f} s under {victim.job_id}")
        deadline = time.monotonic() + away
        while time.monotonic() < deadline:
            answer = client.ask("GET", f"/v1/fine_tuning/jobs/{victim.job_id}")
            shot.expect(not answer.good, "a 200 without a database")
            time.sleep(0.5)
        world.fleet.on_starter(world.fleet.postgres.start)
        for url in world.fleet.urls():
            good: Callable[[], bool] = lambda url=url: client.ask("GET", "/v1/files", url=url).good  # type: ignore[misc] # noqa: E731
            shot.within(_BACK_SECONDS, good, f"{url} answers again")
    client.close()


# --- the answer to a commit is lost ---


def lost_to_the_api(shot: Shot) -> None:
    """A client orders a job, and the API doesn't hear that its commit was done."""
    world = shot.world
    proxy = world.fleet.members["api-1"].database
    with world.claim("api-1"):
        proxy.set(Weather(swallow_commits=shot.rng.randint(1, 4)))
        orders = [world.load.order() for _ in range(2)]
        _await_swallowed(shot, proxy)
        proxy.set(Weather())
    for order in orders:
        shot.wait(order.accepted, _FIRE_SECONDS)


def lost_to_a_worker(shot: Shot) -> None:
    """A training, its supervisor or its worker doesn't hear that a commit was done."""
    world = shot.world
    victim = world.victim(step=shot.rng.randint(0, 30))
    with world.claim(victim.worker.name):
        victim.worker.database.set(Weather(swallow_commits=shot.rng.randint(1, 12)))
        _await_swallowed(shot, victim.worker.database)
        victim.worker.database.set(Weather())
    shot.wait(victim.order.done, _FIRE_SECONDS)


def lost_of_a_success(shot: Shot) -> None:
    """A training doesn't hear that the commit was done which made its model and ended its job."""
    world = shot.world
    order = world.accepted()
    armed = world.moments.arm("after model rename", "pause", job=order.job_id)
    firing = shot.await_fired(armed, _FIRE_SECONDS, unless=order.done)
    worker = firing and world.fleet.worker_of(firing.pid)
    if worker is None:
        return
    proxy = world.fleet.members[worker].database
    with world.claim(worker):
        proxy.set(Weather(swallow_commits=1))
        armed.release()
        _await_swallowed(shot, proxy)
        proxy.set(Weather())
    shot.wait(order.done, _FIRE_SECONDS)


def lost_to_preparation(shot: Shot) -> None:
    """Whoever prepares files doesn't hear that a commit was done."""
    world = shot.world
    proxy = world.fleet.members["cpu-1"].database
    with world.claim("cpu-1"):
        proxy.set(Weather(swallow_commits=shot.rng.randint(1, 6)))
        order = world.load.order()
        _await_swallowed(shot, proxy)
        proxy.set(Weather())
    shot.wait(order.done, _FIRE_SECONDS)


def lost_to_the_reconciler(shot: Shot) -> None:
    """A reconciler doesn't hear that a commit was done, while it rescues a job."""
    world = shot.world
    victim = world.victim(step=1)
    proxies = [world.fleet.members[name].database for name in world.fleet.named("reconciler")]
    with world.claim("reconcilers"):
        for proxy in proxies:
            proxy.set(Weather(swallow_commits=shot.rng.randint(1, 6)))
        world.kill(*(process.pid for process in world.family_of(victim.worker.pid)))
        _await_swallowed(shot, *proxies)
        for proxy in proxies:
            proxy.set(Weather())
    shot.wait(victim.order.done, _FIRE_SECONDS)


def _await_swallowed(shot: Shot, *proxies: object) -> None:
    deadline = time.monotonic() + _FIRE_SECONDS
    while time.monotonic() < deadline:
        for proxy in proxies:
            if proxy.effects.swallowed_commits:  # type: ignore[attr-defined]
                shot.fire(f"{proxy.name}")  # type: ignore[attr-defined]
                return
        time.sleep(0.02)


# --- exhausted ---


def out_of_connections(shot: Shot) -> None:
    """Every connection that PostgreSQL has is taken."""
    world = shot.world
    victim = world.victim(step=1)
    with world.claim("postgres"), world.watch.excusing(), contextlib.ExitStack() as held:
        refused = _take_connections(world.fleet.postgres.url, held)
        if not refused:
            return
        shot.fire(f"{refused} under {victim.job_id}")
        client = world.load.client("prober")
        for _ in range(4):
            client.ask("GET", f"/v1/fine_tuning/jobs/{victim.job_id}")
            time.sleep(world.lease / 2)
        client.close()
        row = world.glance(victim.job_id)
        shot.expect(row is None or row["attempt"] == victim.attempt, f"{victim.job_id} was taken from a living worker")


def row_locked(shot: Shot) -> None:
    """Somebody sits in a transaction on a job's row, for longer than its lease."""
    world = shot.world
    victim = world.victim(step=1)
    with (
        world.claim("postgres"),
        world.watch.excusing(victim.job_id),
        psycopg.connect(world.fleet.postgres.url) as connection,
    ):
        connection.execute("SELECT 1 FROM jobs WHERE id = %s FOR UPDATE", [victim.job_id])
        shot.fire(f"the row of {victim.job_id}")
        _probe(shot, f"/v1/fine_tuning/jobs/{victim.job_id}", 2 * world.lease)
        connection.rollback()


def table_locked(shot: Shot) -> None:
    """Nobody gets at the jobs at all, for longer than a lease."""
    world = shot.world
    victim = world.victim(step=1)
    with world.claim("postgres"), world.watch.excusing(), psycopg.connect(world.fleet.postgres.url) as connection:
        connection.execute("LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE")
        shot.fire("the table of jobs")
        _probe(shot, f"/v1/fine_tuning/jobs/{victim.job_id}", shot.rng.uniform(1, 4) * world.lease)
        connection.rollback()


def _probe(shot: Shot, path: str, seconds: float) -> None:
    """Ask all the while; the history judges the answers."""
    client = shot.world.load.client("prober")
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        client.ask("GET", path)
        time.sleep(0.5)
    client.close()


def _take_connections(url: str, held: contextlib.ExitStack) -> str | None:
    """Open connections until one is refused; what it was told."""
    for _ in range(_MOST_CONNECTIONS):
        try:
            held.enter_context(contextlib.closing(psycopg.connect(url, connect_timeout=2)))
        except psycopg.OperationalError as error:
            return str(error).strip().splitlines()[-1]
    return None


_EXHAUSTED = {
    "no connection left": out_of_connections,
    "a job's row is locked": row_locked,
    "the table of jobs is locked": table_locked,
}
ROWS = (
    Row(
        8,
        "PostgreSQL crash",
        30,
        {"ended, and back later": crashed},
        alone=frozenset({"ended, and back later"}),
    ),
    Row(
        9,
        "commit done, answer lost",
        40,
        {
            "to the API": lost_to_the_api,
            "to a worker": lost_to_a_worker,
            "of a success": lost_of_a_success,
            "to preparation": lost_to_preparation,
            "to a reconciler": lost_to_the_reconciler,
        },
    ),
    Row(12, "PostgreSQL exhausted", 15, _EXHAUSTED, alone=frozenset(_EXHAUSTED)),
)
