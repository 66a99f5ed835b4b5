"""Row 18: a process' clock jumps, by libfaketime; the monotonic one goes on as it was."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from service.up import is_ready
from storage.processes import is_alive
from tests.chaos.faults.row import Row
from tests.chaos.moments import Firing
from tests.chaos.shots import Shot, until
from tests.chaos.world import NotReachedError

_JUMPS = {"an hour on": "+3600", "an hour back": "-3600", "a day on": "+86400", "a day back": "-86400",
          "to 2038": "@2038-01-19 03:14:00"}  # fmt: skip
_NO_JUMP = "+0"
#: What no disagreement between two looks at one clock can be.
_LEAST_JUMP_SECONDS = 1800.0
_FIRE_SECONDS = 20.0
_READY_SECONDS = 60.0


def worker_jumps(shot: Shot, jump: str) -> None:
    """The clock of every GPU worker jumps under a training: its lease neither ends nor lives longer."""
    world = shot.world
    with _faked(shot, world.fleet.named("worker")) as clock:
        victim = world.victim(step=1)
        _jump(shot, clock, jump, [victim.worker.name], f"under {victim.job_id}")
        _expect_not_taken(shot, victim.job_id, victim.attempt)
        _expect_rescue(shot)
        shot.wait(victim.order.done, 30)


def reconciler_jumps(shot: Shot, jump: str) -> None:
    """The clocks of the reconcilers jump: no lease is found expired that isn't, and one that is, is found."""
    world = shot.world
    with _faked(shot, world.fleet.named("reconciler")) as clock:
        victim = world.victim(step=1)
        _jump(shot, clock, jump, world.fleet.named("reconciler"), f"over {victim.job_id}")
        _expect_not_taken(shot, victim.job_id, victim.attempt)
        _expect_rescue(shot)


def api_jumps(shot: Shot, jump: str) -> None:
    """The clocks of the APIs jump: keys hold, and what they write down is PostgreSQL's time."""
    world = shot.world
    with _faked(shot, world.fleet.named("api")) as clock:
        until(lambda: all(map(is_ready, world.fleet.urls())), world.pace.stretch(_READY_SECONDS))
        world.load.order()  # whose client asks all the while
        _jump(shot, clock, jump, world.fleet.named("api"), "under its clients")
        order = world.accepted()
        row = world.ledger.job(order.job_id or "") or {}
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
        "NO_FAKE_STAT": "1",  # or Python would compile every module anew, with times that no other process believes
    }
    with world.claim(*names):
        try:
            for name in names:
                world.fleet.replace(name, env=env)
            yield clock
        finally:
            _set(clock, _NO_JUMP)
            for name in names:
                world.fleet.replace(name)
            _forget_the_dead()


def _jump(shot: Shot, clock: Path, jump: str, names: list[str], where: str) -> None:
    """Let the clock jump, and see that one of the members tells another time than we do. Raises NotReachedError."""
    _set(clock, _JUMPS[jump])
    moments = shot.world.moments
    armed = [moments.arm("before commit", "sleep", process=name, seconds=0) for name in names]
    look: Callable[[], Firing | None] = lambda: next(filter(None, (each.fired() for each in armed)), None)  # noqa: E731
    firing, _ = until(look, shot.world.pace.stretch(_FIRE_SECONDS))
    for each in armed:
        each.disarm()
    if firing is None:
        raise NotReachedError(f"none of {names} has committed anything")
    ours = time.time() - (time.monotonic() - firing.monotonic)
    if abs(firing.at - ours) < _LEAST_JUMP_SECONDS:
        raise NotReachedError(f"the clock of process {firing.pid} has not jumped {jump}")
    shot.fire(f"{jump} {where}: {firing.at - ours:+.0f} s")


def _set(clock: Path, text: str) -> None:
    """All at once: a process never reads half a line."""
    beside = clock.with_suffix(".new")
    beside.write_text(text)
    beside.rename(clock)


def _forget_the_dead() -> None:
    """Remove what libfaketime keeps in memory for processes that were killed."""
    for path in Path("/dev/shm").glob("*faketime_*_*"):
        pid = path.name.rpartition("_")[2]
        if pid.isdigit() and not is_alive(int(pid)):
            with suppress(OSError):
                path.unlink()


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


def _expect_rescue(shot: Shot) -> None:
    """A job whose worker dies is given to another when its lease ends, and no later."""
    world = shot.world
    dead = world.victim(step=0)
    at = world.kill(*(process.pid for process in world.family_of(dead.worker.pid)))
    shot.died(dead.job_id, dead.attempt, at=at, lease=True)
    shot.within(
        world.lease + world.fleet.shape.tick_seconds,
        lambda: (world.ledger.job(dead.job_id) or {}).get("attempt", 0) > dead.attempt,
        f"{dead.job_id} is given to another worker",
    )


_KINDS = {
    f"{who}'s clock jumps {jump}": functools.partial(inject, jump=jump)
    for jump in _JUMPS
    for who, inject in (("a worker", worker_jumps), ("a reconciler", reconciler_jumps), ("an API process", api_jumps))
}
ROWS = (Row(18, "clock jumps", 36, _KINDS, alone=frozenset(_KINDS), needs=dict.fromkeys(_KINDS, "libfaketime")),)
