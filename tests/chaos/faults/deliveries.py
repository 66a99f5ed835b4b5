"""Row 6: what comes out of the queue is there twice, is old, names nothing, or was never meant to be there."""

from __future__ import annotations

import json
import secrets
import zlib
from collections.abc import Callable

from redis import Redis

from storage.queue import PREPARE, TASKS, TRAIN, VALIDATE_FILE
from tests.chaos.faults.row import Row
from tests.chaos.shots import Shot

_DRAINED_SECONDS = 20.0


def again(shot: Shot) -> None:
    """The running attempt, up to twenty times more."""
    victim = shot.world.victim(step=1)
    count = shot.rng.randint(2, 20)
    _deliver(shot, [(TRAIN, [victim.job_id, victim.attempt])] * count)


def again_when_over(shot: Shot) -> None:
    """The attempt, the preparation and the validation of a job that has ended."""
    order = shot.world.accepted()
    shot.wait(order.done, 60)
    tasks: list[tuple[str, list[str | int]]] = [(TRAIN, [order.job_id or "", 1]), (PREPARE, [order.job_id or ""])]
    _deliver(shot, [*tasks, (VALIDATE_FILE, [shot.world.load.file_id(order.spec.file)])] * 3)


def stale(shot: Shot) -> None:
    """Attempts that are over, or have not begun, of a job that trains."""
    victim = shot.world.victim(step=1)
    _deliver(shot, [(TRAIN, [victim.job_id, victim.attempt + change]) for change in (-1, 1, 5, -1)])


def unknown(shot: Shot) -> None:
    """Jobs and files that there are none of."""
    names = [f"ftjob-{secrets.token_hex(12)}", "", "../../etc/passwd", "x" * 10_000]
    _deliver(shot, [(task, [name, 1][: 2 if task == TRAIN else 1]) for task in TASKS for name in names])


def large(shot: Shot) -> None:
    """A megabyte of JSON, and a megabyte that is none."""
    deep = "[" * 1_000_000
    _deliver(shot, [(TRAIN, ["x" * 1_000_000, 1])], raw=[deep.encode(), zlib.compress(deep.encode())])


def foreign(shot: Shot) -> None:
    """Callables that are not on the list, which would leave a trace if they were called."""
    canary = shot.world.fleet.folder / f"canary-{secrets.token_hex(4)}"
    calls: list[tuple[str, list[str | int]]] = [
        ("os.system", [f"touch {canary}"]),
        ("os.mkdir", [str(canary)]),
        ("pathlib.Path.touch", [str(canary)]),
        ("builtins.eval", [f"open({str(canary)!r}, 'w')"]),
    ]
    _deliver(shot, calls)
    shot.expect(not canary.exists(), "a callable of the message's own choice was called")


def _deliver(shot: Shot, calls: list[tuple[str, list[str | int]]], *, raw: list[bytes] | None = None) -> None:
    """Put messages where workers find them, and expect them gone, with every worker as it was."""
    world = shot.world
    workers = [*world.fleet.named("worker"), *world.fleet.named("cpu")]
    pids = {name: world.fleet.members[name].pid for name in workers}
    with world.fleet.valkey.connect() as valkey:
        for task, arguments in calls:
            for queue in {TASKS.get(task, "gpu"), "gpu"}:
                _push(valkey, queue, zlib.compress(json.dumps([task, None, arguments, {}]).encode()))
        for data in raw or ():
            _push(valkey, "gpu", data)
        shot.fire(f"{len(calls) + len(raw or ())} messages: {calls[0][0]} {str(calls[0][1])[:60]}")
        drained: Callable[[], bool] = lambda: not (valkey.llen("rq:queue:gpu") or valkey.llen("rq:queue:cpu"))  # noqa: E731
        shot.within(world.pace.stretch(_DRAINED_SECONDS), drained, "the queues are empty again")
    now = {name: world.fleet.members[name].pid for name in workers}
    shot.expect(pids == now and all(world.fleet.members[name].runs for name in workers), "a worker ended over it")


def _push(valkey: Redis, queue: str, data: bytes) -> None:
    name = f"chaos-{secrets.token_hex(6)}"
    members = {
        "data": data,
        "origin": queue,
        "status": "queued",
        "created_at": "2030-01-01T00:00:00.000000Z",
        "timeout": "-1",
    }
    valkey.hset(f"rq:job:{name}", mapping=members)  # type: ignore[arg-type]
    valkey.expire(f"rq:job:{name}", 600)
    valkey.rpush(f"rq:queue:{queue}", name)


_KINDS = {
    "the same again": again,
    "the same again, when it is over": again_when_over,
    "of another attempt": stale,
    "of nothing": unknown,
    "a megabyte": large,
    "a foreign callable": foreign,
}
# Whether a worker ended over a message can only be told while nobody else ends workers.
ROWS = (Row(6, "deliveries", 60, _KINDS, alone=frozenset(_KINDS)),)
