"""Row 18: a process' clock jumps, by libfaketime; the monotonic one goes on as it was."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.chaos.faults.row import Row
from tests.chaos.shots import Shot

_JUMPS = {"an hour on": "+3600", "an hour back": "-3600", "a day on": "+86400", "a day back": "-86400",
          "to 2038": "@2038-01-19 03:14:00"}  # fmt: skip
_NO_JUMP = "+0"


def worker_jumps(shot: Shot, jump: str) -> None:
    """The clock of every GPU worker jumps under a training: its lease neither ends nor lives longer."""
    world = shot.world
    names = world.fleet.named("worker")
    with _faked(shot, names) as clock:
        victim = world.victim(step=1)
        _jump(clock, jump)
        shot.fire(f"{jump} under {victim.job_id}")
        _expect_not_taken(shot, victim.job_id, victim.attempt)
        shot.wait(victim.order.done, 30)


def reconciler_jumps(shot: Shot, jump: str) -> None:
    """The clocks of the reconcilers jump: no lease is found expired that isn't, and one that is, is found."""
    world = shot.world
    with _faked(shot, world.fleet.named("reconciler")) as clock:
        victim = world.victim(step=1)
        _jump(clock, jump)
        shot.fire(f"{jump} over {victim.job_id}")
        _expect_not_taken(shot, victim.job_id, victim.attempt)
        dead = world.victim(step=0)
        at = world.kill(*(process.pid for process in world.family_of(dead.worker.pid)))
        shot.died(dead.job_id, dead.attempt, at=at, lease=True)
        shot.within(
            world.lease + world.fleet.shape.tick_seconds,
            lambda: (world.ledger.job(dead.job_id) or {}).get("attempt", 0) > dead.attempt,
            f"{dead.job_id} is given to another worker",
        )


def api_jumps(shot: Shot, jump: str) -> None:
    """The clocks of the APIs jump: keys hold, and what they write down is PostgreSQL's time."""
    world = shot.world
    with _faked(shot, world.fleet.named("api")) as clock:
        _jump(clock, jump)
        order = world.accepted()
        row = world.ledger.job(order.job_id or "") or {}
        shot.fire(f"{jump} at the creation of {order.job_id}")
        off = abs(row["created_at"].timestamp() - time.time())
        shot.expect(off < 60, f"{order.job_id} was written down as created {off:.0f} s away from now")
        shot.wait(order.done, 30)


@contextmanager
def _faked(shot: Shot, names: list[str]) -> Iterator[Path]:
    """Members whose clock follows a file, which is theirs alone."""
    world = shot.world
    clock = world.fleet.folder / f"clock-{shot.rng.randrange(10**9)}"
    clock.write_text(_NO_JUMP)
    env = {
        "LD_PRELOAD": str(world.tools.faketime),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }
    with world.claim(*names):
        try:
            for name in names:
                world.fleet.replace(name, env=env)
            yield clock
        finally:
            clock.write_text(_NO_JUMP)
            for name in names:
                world.fleet.replace(name)


def _jump(clock: Path, jump: str) -> None:
    """All at once: a process never reads half a line."""
    beside = clock.with_suffix(".new")
    beside.write_text(_JUMPS[jump])
    beside.rename(clock)


def _expect_not_taken(shot: Shot, job_id: str, attempt: int) -> None:
    """For two leases, unless the job ends before."""
    deadline = time.monotonic() + 2 * shot.world.lease
    while time.monotonic() < deadline:
        row = shot.world.glance(job_id) or {}
        if row.get("state") == "succeeded":
            return
        if row and row["attempt"] != attempt:
            shot.expect(False, f"{job_id} was taken from a living worker")
            return
        time.sleep(0.2)


_KINDS = {
    f"{who}'s clock jumps {jump}": functools.partial(inject, jump=jump)
    for jump in _JUMPS
    for who, inject in (("a worker", worker_jumps), ("a reconciler", reconciler_jumps), ("an API process", api_jumps))
}
ROWS = (Row(18, "clock jumps", 36, _KINDS, alone=frozenset(_KINDS), needs=dict.fromkeys(_KINDS, "libfaketime")),)
