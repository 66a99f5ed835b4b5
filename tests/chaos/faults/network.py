"""Rows 10 and 11: a network that falls silent, without a word, and one that is merely bad."""

from __future__ import annotations

import contextlib
import functools
import signal
import subprocess
import time
from collections.abc import Mapping

from tests.chaos.faults.row import Row
from tests.chaos.fleet import ROOT
from tests.chaos.namespaces import Cable, cable
from tests.chaos.proxies import BOTH, Direction, Proxy, Weather
from tests.chaos.shots import Shot
from tests.chaos.world import Victim

_POOL_HEALS_SECONDS = 5.0
_BAD_SECONDS = 12.0


# --- silence ---


def worker_silenced(shot: Shot, directions: frozenset[Direction]) -> None:
    """Nothing passes between a worker and PostgreSQL any more; what was on its way arrives when it is over."""
    world = shot.world
    victim = world.victim(step=shot.rng.randint(1, 20))
    proxy = victim.worker.database
    leases = shot.rng.uniform(1.5, 3)
    with (
        world.claim(victim.worker.name),
        world.watch.excusing(victim.job_id),
        proxy.under(Weather(silent=directions)),
    ):
        _expect_stop_before_takeover(shot, victim, leases * world.lease)
        if proxy.effects.held_bytes:
            shot.fire(f"{proxy.name}, {' and '.join(sorted(directions))}, {leases:.1f} leases under {victim.job_id}")


def _expect_stop_before_takeover(shot: Shot, victim: Victim, seconds: float) -> None:
    """The old trainer may take no step once another has its job. Returns after so many seconds."""
    world = shot.world
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        row = world.glance(victim.job_id)
        if row is not None and row["attempt"] > victim.attempt:
            _expect_gone(shot, victim, "when its job was given to another")
            break
        time.sleep(0.05)
    time.sleep(max(deadline - time.monotonic(), 0))


def _expect_gone(shot: Shot, victim: Victim, when: str) -> None:
    """Its lease is over, and so it had to have stopped: whatever it takes beyond that is the machine's."""
    shot.within(
        0.0, lambda: not shot.world.runs(victim.trainer.pid), f"the trainer {victim.trainer.pid} is gone {when}"
    )


def api_silenced(shot: Shot, directions: frozenset[Direction]) -> None:
    """Nothing passes between an API process and PostgreSQL; its answers are 503, and it heals by itself."""
    world = shot.world
    member = world.fleet.members["api-2"]
    url = world.fleet.url_of("api-2")
    client = world.load.client("prober")
    with world.claim("api-2"):
        client.ask("GET", "/v1/files", url=url)
        with member.database.under(Weather(silent=directions)):
            deadline = time.monotonic() + shot.rng.uniform(3, 10)
            while time.monotonic() < deadline:
                client.ask("GET", "/v1/files", url=url)
            if member.database.effects.held_bytes:
                shot.fire(f"{member.database.name}, {' and '.join(sorted(directions))}")
        shot.within(_POOL_HEALS_SECONDS, lambda: client.ask("GET", "/v1/files", url=url).good, "api-2 answers again")
    client.close()


def cable_pulled(shot: Shot) -> None:
    """A worker in a network of its own, whose interface goes down under a training."""
    world = shot.world
    name = shot.rng.choice(world.fleet.named("worker"))
    others = [other for other in world.fleet.named("worker") if other != name]
    with world.claim(*world.fleet.named("worker")), cable(world.fleet.postgres.socket, ROOT) as line:
        env = {
            "DATABASE_URL": f"postgresql://postgres@{line.address}/postgres",
            "REDIS_URL": f"unix://{world.fleet.valkey.socket}?db=0",
        }
        world.fleet.replace(name, prefix=line.prefix, env=env)
        try:
            _hold(shot, others)
            victim = world.victim(step=1)
            _let_go(shot, others)
            if victim.worker.name == name:
                _pull(shot, line, victim)
        finally:
            _let_go(shot, others)
            line.plug()
            world.fleet.replace(name)


def _pull(shot: Shot, line: Cable, victim: Victim) -> None:
    world = shot.world
    with world.watch.excusing(victim.job_id):
        line.pull()
        pulled = time.time()
        leases = shot.rng.uniform(1.5, 3)
        shot.fire(f"{victim.worker.name} for {leases:.1f} leases under {victim.job_id}")
        _expect_stop_before_takeover(shot, victim, leases * world.lease)
        shot.died(victim.job_id, victim.attempt, at=pulled, lease=True, silent=True)
        line.plug()


def _hold(shot: Shot, names: list[str]) -> None:
    """Have other workers take nothing, so that a job goes where the fault is."""
    for name in names:
        shot.world.fleet.signal(name, signal.SIGSTOP)


def _let_go(shot: Shot, names: list[str]) -> None:
    for name in names:
        shot.world.fleet.signal(name, signal.SIGCONT)


# --- bad weather ---

#: Round trips of 300 ms, give or take; then what slow and broken lines do.
_WEATHER: Mapping[str, Weather] = {
    "slow to answer": Weather(delay_seconds=0.15, jitter_seconds=0.15),
    "50 kB a second": Weather(bytes_per_second=50_000),
    "a byte at a time": Weather(slice_bytes=1),
    "cut after some bytes": Weather(cut_after_bytes=5_000),
}


def bad_weather(shot: Shot, kind: str) -> None:
    """A line to PostgreSQL is bad for a while, under a worker and an API process."""
    world = shot.world
    victim = world.victim(step=1)
    weather = _WEATHER[kind]
    if weather.cut_after_bytes:
        weather = Weather(cut_after_bytes=shot.rng.randint(100, 20_000))
    proxies = [victim.worker.database, world.fleet.members["api-2"].database]
    with world.claim(victim.worker.name, "api-2"), contextlib.ExitStack() as bad:
        for proxy in proxies:
            bad.enter_context(proxy.under(weather))
        shot.wait(victim.order.done, _BAD_SECONDS)
        if all(_was_felt(proxy) for proxy in proxies):
            shot.fire(f"{kind}, under {victim.job_id}")
        row = world.glance(victim.job_id)
        if not weather.cut_after_bytes and row is not None:
            shot.expect(row["attempt"] == victim.attempt, f"{victim.job_id} was taken from a living worker")


def _was_felt(proxy: Proxy) -> bool:
    """Whether anything has gone through the bad weather, or has failed to."""
    return bool(proxy.effects.cut_links if proxy.weather.cut_after_bytes else proxy.effects.passed_bytes)


def links_reset(shot: Shot) -> None:
    """Every connection to PostgreSQL is reset, again and again."""
    world = shot.world
    victim = world.victim(step=1)
    count = 0
    for _ in range(shot.rng.randint(1, 6)):
        for member in world.fleet.members.values():
            count += member.database.reset_links()
        time.sleep(shot.rng.uniform(0, 1))
    if count:
        shot.fire(f"{count} connections, under {victim.job_id}")


def sockets_destroyed(shot: Shot) -> None:
    """The kernel destroys the worker's sockets to PostgreSQL."""
    world = shot.world
    victim = world.victim(step=1)
    port = str(victim.worker.database.port)
    done = subprocess.run(["ss", "-K", "-t", "dst", f"127.0.0.1:{port}"], capture_output=True, check=False, text=True)
    killed = len([line for line in done.stdout.splitlines() if port in line])
    if killed:
        shot.fire(f"{killed} sockets of {victim.worker.name}")


_SILENT = {"both ways": BOTH, "upwards": frozenset({"up"}), "downwards": frozenset({"down"})}
ROWS = (
    Row(
        10,
        "silent partition",
        40,
        {
            **{
                f"a worker, {way}": functools.partial(worker_silenced, directions=directions)
                for way, directions in _SILENT.items()
            },
            **{
                f"an API process, {way}": functools.partial(api_silenced, directions=directions)
                for way, directions in _SILENT.items()
            },
            "a worker's interface goes down": cable_pulled,
        },
        alone=frozenset({"a worker's interface goes down"}),
        needs={"a worker's interface goes down": "network namespaces"},
    ),
    Row(
        11,
        "bad network",
        30,
        {
            **{kind: functools.partial(bad_weather, kind=kind) for kind in _WEATHER},
            "connections reset": links_reset,
            "sockets destroyed": sockets_destroyed,
        },
        alone=frozenset({"connections reset"}),
        needs={"sockets destroyed": "ss -K"},
    ),
)
