"""Rows 2 and 4: a worker is killed, or told to go, again and again under the same job."""

from __future__ import annotations

import functools
import math
import signal
from collections.abc import Callable

from tests.chaos.faults.row import Row
from tests.chaos.shots import Shot, until
from tests.chaos.specs import STEPS

_CHILDREN_END_SECONDS = 2.0
_LEAVES_WITHIN_SECONDS = 5.0
_KILLED_AFTER_SECONDS = 10.0
_PREEMPTIONS = 5


def parent_killed(shot: Shot) -> None:
    """SIGKILL to the worker alone; the kernel takes its child and the trainer along."""
    world = shot.world
    victim = world.victim(step=shot.rng.randint(0, STEPS // 2))
    children = [process.pid for process in world.family_of(victim.worker.pid)[1:]]
    at = world.kill(victim.worker.pid)
    shot.fire(f"{victim.worker.name} under {victim.job_id}, with children {children}")
    shot.died(victim.job_id, victim.attempt, at=at, lease=True)
    gone: Callable[[], bool] = lambda: not any(map(world.runs, children))  # noqa: E731
    shot.within(_CHILDREN_END_SECONDS, gone, f"{children} end with their worker")


def group_killed(shot: Shot) -> None:
    """SIGKILL to the worker and all below it, as when a container is removed."""
    world = shot.world
    victim = world.victim(step=shot.rng.randint(0, STEPS // 2))
    pids = [process.pid for process in world.family_of(victim.worker.pid)]
    at = world.kill(*pids)
    shot.fire(f"{victim.worker.name} and all of {pids} under {victim.job_id}")
    shot.died(victim.job_id, victim.attempt, at=at, lease=True)


def supervisor_killed(shot: Shot) -> None:
    """SIGKILL to the child that keeps the lease; the trainer below it goes with it."""
    world = shot.world
    victim = world.victim(step=shot.rng.randint(0, STEPS // 2))
    at = world.kill(victim.trainer.parent)
    shot.fire(f"the supervisor {victim.trainer.parent} of {victim.job_id}")
    shot.died(victim.job_id, victim.attempt, at=at, lease=True)
    gone: Callable[[], bool] = lambda: not world.runs(victim.trainer.pid)  # noqa: E731
    shot.within(_CHILDREN_END_SECONDS, gone, f"the trainer {victim.trainer.pid} ends with its supervisor")


def preempted(shot: Shot, times: int) -> None:
    """SIGTERM, and SIGKILL ten seconds later to who hasn't left; one job, again and again."""
    world = shot.world
    order = world.accepted()
    attempt = 0
    for _ in range(times):
        victim = world.at_work(order, step=shot.rng.randint(0, 4), after_attempt=attempt)
        attempt = victim.attempt
        family = [process.pid for process in world.family_of(victim.worker.pid)]
        if not _leaves(shot, victim.worker.name, family):
            world.kill(*family)
        shot.fire(f"{victim.worker.name} under attempt {attempt} of {victim.job_id}")
    shot.wait(order.done, _KILLED_AFTER_SECONDS * 3)
    row = world.ledger.job(order.job_id or "") or {}
    spent = row.get("crashes", 0) + row.get("oom_kills", 0)
    shot.expect(not spent, f"preemptions were counted as {spent} deaths of {order.job_id}")


def _leaves(shot: Shot, name: str, family: list[int]) -> bool:
    """Whether a worker that is told to go has gone before it is killed, and all below it."""
    world = shot.world
    world.fleet.signal(name, signal.SIGTERM)
    _, taken = until(lambda: not any(map(world.runs, family)), world.pace.stretch(_KILLED_AFTER_SECONDS))
    shot.expect(taken <= _LEAVES_WITHIN_SECONDS + world.slack_seconds, f"{name} took {taken:.1f} s to go")
    return math.isfinite(taken)


ROWS = (
    Row(
        2,
        "worker killed",
        40,
        {
            "its parent only": parent_killed,
            "the whole group": group_killed,
            "its supervising child": supervisor_killed,
        },
    ),
    Row(
        4,
        "preemption",
        40,
        {
            "SIGTERM five times in a row": functools.partial(preempted, times=_PREEMPTIONS),
            "SIGTERM once": functools.partial(preempted, times=1),
        },
        per_shot=_PREEMPTIONS,
    ),
)
