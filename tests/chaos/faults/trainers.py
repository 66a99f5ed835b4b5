"""Rows 1 and 3: the training process is killed, or stopped until its lease has long run out."""

from __future__ import annotations

import functools
import time

from tests.chaos.faults.row import Row
from tests.chaos.shots import Shot
from tests.chaos.specs import CHECKPOINT_EVERY, STEPS
from tests.chaos.world import Victim

_FIRE_SECONDS = 60.0
_ENDS_WITHIN_SECONDS = 5.0
#: The third crash fails a job, so that each gets two.
_KILLS_PER_JOB = 2

#: Named moments, and after how many times that one comes it is meant.
_MOMENTS: dict[str, tuple[str, range]] = {
    "killed before its first step": ("before step", range(1, 2)),
    "killed in a step": ("mid step", range(2, 20)),
    "killed after a step, before it is written": ("after step", range(2, 20)),
    "killed while it writes a checkpoint": ("writing checkpoint", range(1, 12)),
    "killed before a checkpoint's rename": ("before checkpoint rename", range(1, 4)),
    "killed after a checkpoint's rename": ("after checkpoint rename", range(1, 4)),
    "killed while it writes the model": ("writing artifact", range(1, 6)),
    "killed before the model's rename": ("before model rename", range(1, 2)),
    "killed after the model's rename, before its row": ("after model rename", range(1, 2)),
    "killed before a commit": ("before commit", range(1, 12)),
    "killed after a commit": ("after commit", range(1, 12)),
}


def killed_at_a_moment(shot: Shot, moment: str, nth: range) -> None:
    """Two attempts of one job are killed at the same named moment."""
    world = shot.world
    order = world.accepted()
    job_id = order.job_id or ""
    for attempt in range(1, _KILLS_PER_JOB + 1):
        armed = world.moments.arm(moment, job=job_id, attempt=attempt, nth=shot.rng.choice(nth))
        firing = shot.await_fired(armed, _FIRE_SECONDS, unless=order.done)
        if firing is None:
            break
        shot.fire(f"pid {firing.pid}, attempt {attempt} of {job_id}")
        shot.died(job_id, attempt, at=firing.at, lease=False)
    if shot.fires:
        shot.wait(order.done, _FIRE_SECONDS)
        _expect_few_steps_lost(shot, job_id)


def killed_at_random(shot: Shot) -> None:
    """Killed from outside, at no moment in particular."""
    world = shot.world
    order = world.accepted()
    for attempt in range(1, _KILLS_PER_JOB + 1):
        victim = world.at_work(order, step=0, after_attempt=attempt - 1)
        shot.wait(order.done, shot.rng.uniform(0, 8))
        if not world.runs(victim.trainer.pid):
            break
        at = world.kill(victim.trainer.pid)
        shot.fire(f"pid {victim.trainer.pid}, attempt {attempt} of {victim.job_id}")
        shot.died(victim.job_id, victim.attempt, at=at, lease=False)
    if shot.fires:
        shot.wait(order.done, _FIRE_SECONDS)
        _expect_few_steps_lost(shot, order.job_id or "")


def _expect_few_steps_lost(shot: Shot, job_id: str) -> None:
    """At most what lies between two checkpoints is trained again."""
    steps = shot.world.ledger.first_and_last_steps(job_id)
    for (_, last), (first, _) in zip(list(steps.values())[:-1], list(steps.values())[1:], strict=True):
        lost = last - first + 1
        shot.expect(lost <= CHECKPOINT_EVERY, f"{lost} steps of {job_id} were trained again")


# --- zombies ---


def stopped_with_its_worker(shot: Shot) -> None:
    """Worker, supervising child and trainer stop for longer than the lease; then all of them go on at once."""
    _stopped(shot, "family", shot.rng.uniform(1.5, 3))


def stopped_with_its_supervisor(shot: Shot) -> None:
    """The trainer and the child that keeps its lease stop; the worker above them goes on."""
    _stopped(shot, "horse", shot.rng.uniform(1.5, 3))


def stopped_alone(shot: Shot) -> None:
    """Only the trainer stops."""
    _stopped(shot, "trainer", shot.rng.uniform(1.5, 2))


def _stopped(shot: Shot, who: str, leases: float) -> None:
    world = shot.world
    victim = world.victim(step=shot.rng.randint(1, STEPS // 2))
    with world.watch.excusing(victim.job_id), world.frozen(*_pids(victim, who)):
        stopped = time.time()
        shot.fire(f"{who} of {victim.job_id} for {leases:.1f} leases")
        time.sleep(leases * world.lease)
        if who != "trainer":  # whoever keeps the lease is still
            left = world.lease + world.fleet.shape.tick_seconds - (time.time() - stopped)
            shot.within(max(left, 0.0), lambda: _is_taken_over(shot, victim), f"{victim.job_id} is given to another")
            shot.died(victim.job_id, victim.attempt, at=stopped, lease=True)
        taken_over = _is_taken_over(shot, victim)
    if taken_over:
        gone = functools.partial(lambda pid: not world.runs(pid), victim.trainer.pid)
        shot.within(_ENDS_WITHIN_SECONDS, gone, f"the trainer {victim.trainer.pid} that lost its job ends")


def _is_taken_over(shot: Shot, victim: Victim) -> bool:
    row = shot.world.ledger.job(victim.job_id)
    return row is not None and row["attempt"] > victim.attempt


def _pids(victim: Victim, who: str) -> list[int]:
    """Parents first, so that none of them sees a child stop."""
    above = {"family": [victim.worker.pid, victim.trainer.parent], "horse": [victim.trainer.parent], "trainer": []}
    return list(dict.fromkeys([*above[who], victim.trainer.pid]))


ROWS = (
    Row(
        1,
        "trainer killed",
        120,
        {
            "killed at random": killed_at_random,
            **{
                kind: functools.partial(killed_at_a_moment, moment=moment, nth=nth)
                for kind, (moment, nth) in _MOMENTS.items()
            },
        },
        per_shot=_KILLS_PER_JOB,
    ),
    Row(
        3,
        "zombie trainer",
        40,
        {
            "stopped with its worker": stopped_with_its_worker,
            "stopped with its supervisor": stopped_with_its_supervisor,
            "stopped alone": stopped_alone,
        },
    ),
)
