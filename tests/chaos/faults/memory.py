"""Row 5: memory runs out, by the kernel's killer or by a limit on the process."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.chaos.faults.row import Row
from tests.chaos.shots import Shot
from tests.chaos.tools import memory_cgroups
from tests.chaos.world import NotReachedError

_LIMIT_BYTES = 1200 * 2**20
_TOO_MUCH_MEBIBYTES = 4000
_END_SECONDS = 120.0
_OUT_OF_MEMORY = frozenset({"out_of_memory"})


def killed_by_the_kernel(shot: Shot) -> None:
    """A job that takes too much in each of its attempts, in workers whose cgroup has a limit."""
    world = shot.world
    with world.claim("workers' memory"), _limited(shot):
        order = world.accepted(wish="failed", codes=_OUT_OF_MEMORY)
        neighbour = world.load.order()
        armed = world.moments.arm(
            "mid step", "allocate", job=order.job_id, nth=3, repeat=True, mebibytes=_TOO_MUCH_MEBIBYTES
        )
        shot.wait(order.done, _END_SECONDS)
        armed.disarm()
        shot.wait(neighbour.done, _END_SECONDS)
    if _oom_kills(shot):
        shot.fire(f"the kernel killed {_oom_kills(shot)} trainers of {order.job_id}")


def address_space_limited(shot: Shot) -> None:
    """The trainer may hardly grow any more: torch and Python are refused memory."""
    world = shot.world
    order = world.accepted(codes=_OUT_OF_MEMORY)
    paused = world.moments.arm("before step", "pause", job=order.job_id, nth=shot.rng.randint(1, 10))
    firing = shot.await_fired(paused, _END_SECONDS, unless=order.done)
    if firing is None:
        return
    limit = _address_space(firing.pid) + shot.rng.randint(0, 24) * 2**20
    refused = world.moments.arm("mid step", "allocate", job=order.job_id, attempt=1, mebibytes=64)
    resource.prlimit(firing.pid, resource.RLIMIT_AS, (limit, limit))
    paused.release()
    if shot.await_fired(refused, _END_SECONDS, unless=order.done):
        shot.fire(f"at most {limit} bytes of addresses for {firing.pid}, which trains {order.job_id}")
    shot.wait(order.done, _END_SECONDS)


@contextmanager
def _limited(shot: Shot) -> Iterator[None]:
    """Each GPU worker in a cgroup of its own, with all its processes."""
    fleet = shot.world.fleet
    groups = {name: _group(shot, name) for name in fleet.named("worker")}
    try:
        for name, group in groups.items():
            group.mkdir(exist_ok=True)
            _set_limit(group, _LIMIT_BYTES)
            family = shot.world.family_of(fleet.members[name].pid)
            if not family:
                raise NotReachedError(f"{name} has just ended, and begins anew outside of its group")
            for process in family:
                _move(process.pid, group)
        yield
    finally:
        for group in filter(Path.exists, groups.values()):
            _set_limit(group, -1)


def _group(shot: Shot, worker: str) -> Path:
    root = memory_cgroups()
    assert root is not None
    return root / f"chaos-{shot.world.fleet.name}-{worker}"


def _set_limit(group: Path, size: int) -> None:
    if (group / "memory.max").exists():
        (group / "memory.max").write_text(str(size) if size >= 0 else "max")
    else:
        (group / "memory.limit_in_bytes").write_text(str(size))


def _move(pid: int, group: Path) -> None:
    try:
        (group / "cgroup.procs").write_text(str(pid))
    except OSError:  # it has ended meanwhile
        if Path(f"/proc/{pid}").exists():
            raise


def _oom_kills(shot: Shot) -> int:
    """How often the kernel has killed in the workers' groups."""
    count = 0
    for name in shot.world.fleet.named("worker"):
        group = _group(shot, name)
        told = group / ("memory.events" if (group / "memory.events").exists() else "memory.oom_control")
        words = told.read_text().split()
        count += int(words[words.index("oom_kill") + 1])
    return count


def remove_groups(fleet: str) -> None:
    """Remove the groups of a fleet that has ended."""
    root = memory_cgroups()
    for group in root.glob(f"chaos-{fleet}-*") if root else ():
        os.rmdir(group)  # noqa: PTH106


def _address_space(pid: int) -> int:
    """Bytes of addresses that a process has, mapped."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()


ROWS = (
    Row(
        5,
        "out of memory",
        20,
        {
            "killed by the kernel in its cgroup": killed_by_the_kernel,
            "refused memory by a limit": address_space_limited,
        },
        alone=frozenset({"killed by the kernel in its cgroup"}),
        needs={"killed by the kernel in its cgroup": "memory cgroup"},
    ),
)
