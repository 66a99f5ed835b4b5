"""Rows 8, 9 and 12: PostgreSQL crashes, its answer to a commit is lost, or it has nothing left to give."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import psycopg

from tests.chaos.faults.row import Row
from tests.chaos.proxies import Proxy, Weather
from tests.chaos.shots import Shot, until
from tests.chaos.world import Victim

_BACK_SECONDS = 5.0
_FIRE_SECONDS = 40.0
_MOST_CONNECTIONS = 200
#: Of a training that has something to write. See workers.patience.
_PATIENCE_SECONDS = 30.0
#: What a reconciler does around a rescue takes as many commits.
_COMMITS_AROUND_A_RESCUE = 4


def crashed(shot: Shot) -> None:
    """Ended without a checkpoint, and started again after a while."""
    world = shot.world
    victim = world.victim(step=1)
    away = shot.rng.choice((0, 1, world.lease / 2, world.lease, 2 * world.lease, shot.rng.uniform(5, 20)))
    client = world.load.client("prober")
    with world.claim("postgres"), world.watch.excusing():
        world.fleet.postgres.crash()
        try:
            shot.fire(f"away for {away:.1f} s under {victim.job_id}")
            deadline = time.monotonic() + away
            while time.monotonic() < deadline:
                answer = client.ask("GET", f"/v1/fine_tuning/jobs/{victim.job_id}")
                shot.expect(not answer.good, "a 200 without a database")
                time.sleep(0.5)
            if away > world.lease + world.slack_seconds:
                shot.expect(not world.runs(victim.trainer.pid), f"{victim.trainer.pid} trains on after its lease")
        finally:
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
    with world.claim("api-1"), proxy.under(Weather(swallow_commits=shot.rng.randint(1, 4))):
        orders = [world.load.order() for _ in range(2)]
        _await_swallowed(shot, proxy)
    for order in orders:
        shot.wait(order.accepted, _FIRE_SECONDS)


def lost_to_a_worker(shot: Shot) -> None:
    """A training, its supervisor or its worker doesn't hear that a commit was done."""
    world = shot.world
    victim = world.victim(step=shot.rng.randint(0, 30))
    proxy = victim.worker.database
    with world.claim(victim.worker.name), proxy.under(Weather(swallow_commits=shot.rng.randint(1, 12))):
        _await_swallowed(shot, proxy)
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
    with world.claim(worker), proxy.under(Weather(swallow_commits=1)):
        armed.release()
        _await_swallowed(shot, proxy)
    shot.wait(order.done, _FIRE_SECONDS)


def lost_to_preparation(shot: Shot) -> None:
    """Whoever prepares files doesn't hear that a commit was done."""
    world = shot.world
    proxy = world.fleet.members["cpu-1"].database
    with world.claim("cpu-1"), proxy.under(Weather(swallow_commits=shot.rng.randint(1, 6))):
        order = world.load.order()
        _await_swallowed(shot, proxy)
    shot.wait(order.done, _FIRE_SECONDS)


def lost_to_the_reconciler(shot: Shot) -> None:
    """A reconciler doesn't hear that a commit was done, while it rescues a job."""
    world = shot.world
    victim = world.victim(step=1)
    proxies = [world.fleet.members[name].database for name in world.fleet.named("reconciler")]
    with world.claim("reconcilers"), contextlib.ExitStack() as losing:
        world.kill(*(process.pid for process in world.family_of(victim.worker.pid)))
        until(lambda: _is_about_to_be_rescued(shot, victim), world.lease + world.slack_seconds)
        for proxy in proxies:
            losing.enter_context(proxy.under(Weather(swallow_commits=shot.rng.randint(1, _COMMITS_AROUND_A_RESCUE))))
        _await_swallowed(shot, *proxies)
    shot.wait(victim.order.done, _FIRE_SECONDS)


def _is_about_to_be_rescued(shot: Shot, victim: Victim) -> bool:
    """Whether its lease ends within a tick: before, a reconciler's commits are about nothing."""
    rows = shot.world.ledger.rows(
        "SELECT 1 FROM leases WHERE job_id = %s AND attempt = %s AND expires_at > clock_timestamp() + interval '0.5 s'",
        [victim.job_id, victim.attempt],
    )
    return not rows


def _await_swallowed(shot: Shot, *proxies: Proxy) -> None:
    found, _ = until(lambda: [proxy for proxy in proxies if proxy.effects.swallowed_commits], _FIRE_SECONDS)
    if found:
        shot.fire(found[0].name)


# --- exhausted ---


def out_of_connections(shot: Shot) -> None:
    """Every connection that PostgreSQL has is taken."""
    world = shot.world
    victim = world.victim(step=1)
    with world.claim("postgres"), _not_taken(shot, victim), contextlib.ExitStack() as held:
        refused = _take_connections(world.fleet.postgres.url, held)
        if not refused:
            return
        shot.fire(f"{refused} under {victim.job_id}")
        client = world.load.client("prober")
        for _ in range(4):
            client.ask("GET", f"/v1/fine_tuning/jobs/{victim.job_id}")
            time.sleep(world.lease / 2)
        client.close()


def row_locked(shot: Shot) -> None:
    """Somebody sits in a transaction on a job's row, for longer than its lease."""
    world = shot.world
    victim = world.victim(step=1)
    with (
        world.claim("postgres"),
        _not_taken(shot, victim),
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
    with (
        world.claim("postgres"),
        _not_taken(shot, victim),
        psycopg.connect(world.fleet.postgres.url) as connection,
    ):
        connection.execute("LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE")
        shot.fire("the table of jobs")
        _probe(shot, f"/v1/fine_tuning/jobs/{victim.job_id}", shot.rng.uniform(1, 4) * world.lease)
        connection.rollback()


@contextlib.contextmanager
def _not_taken(shot: Shot, victim: Victim) -> Iterator[None]:
    """Its worker lives, and so its lease is kept, whatever is done to PostgreSQL in the block.

    After a while a training that can't write may give its job back, which isn't the same.
    """
    world = shot.world
    began = time.monotonic()
    with world.watch.excusing():
        yield
        row = world.ledger.job(victim.job_id) or {}
        taken = row.get("crashes") if time.monotonic() - began > _PATIENCE_SECONDS else row["attempt"] > victim.attempt
        shot.expect(not taken, f"{victim.job_id} was taken from a living worker")


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
