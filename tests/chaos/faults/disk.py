"""Rows 14 to 16: the disk is full, broken or slow."""

from __future__ import annotations

import errno
import functools
import resource
import time

from tests.chaos.clients import Client
from tests.chaos.faults.row import Row
from tests.chaos.moments import Action, Armed, Firing
from tests.chaos.shots import Shot
from tests.chaos.specs import content
from tests.chaos.tracing import tampering
from tests.chaos.world import NotReachedError

_FIRE_SECONDS = 60.0
_END_SECONDS = 60.0
#: Codes with which a job may fail when its disk is full, or when the disk gives errors.
_FULL = frozenset({"disk_full", "storage_full"})
_BROKEN = frozenset({"storage_failed"})


def _paused_trainer(shot: Shot, step: int, codes: frozenset[str]) -> tuple[str, Armed, Firing]:
    """A job whose trainer waits before a step: its id, what lets it go, and its process. Raises NotReachedError."""
    order = shot.world.accepted(codes=codes)
    armed = shot.world.moments.arm("before step", "pause", job=order.job_id, nth=step)
    firing = shot.await_fired(armed, _FIRE_SECONDS, unless=order.done)
    if firing is None:
        raise NotReachedError(f"{order.job_id} did not come to step {step}")
    return order.job_id or "", armed, firing


# --- full ---


def filled_up(shot: Shot) -> None:
    """Something else takes all the room there is, for a while."""
    world = shot.world
    ballast = world.fleet.data / "artifacts" / "ballast"
    client = world.load.client("uploader")
    with world.claim("disk"), world.watch.excusing():
        victim = world.victim(step=1, codes=_FULL)
        try:
            _fill(ballast)
            shot.fire(f"{ballast.stat().st_size} bytes of ballast under {victim.job_id}")
            deadline = time.monotonic() + shot.rng.uniform(2, 8)
            while time.monotonic() < deadline:
                _upload(shot, client)
                time.sleep(0.5)
        finally:
            ballast.unlink(missing_ok=True)
    client.close()
    shot.wait(victim.order.done, _END_SECONDS)


def _upload(shot: Shot, client: Client) -> None:
    sent = {"file": ("late.jsonl", content("pairs") * 50), "purpose": (None, "fine-tune")}
    answer = client.ask("POST", "/v1/files", files=sent)
    # A checkpoint that is removed makes room for one.
    fine = not answer.known or answer.good or answer.code == "storage_full"
    shot.expect(fine, f"an upload to a full disk was told {answer.status} {answer.code}")


def _fill(path: object) -> None:
    with open(path, "wb", buffering=0) as target:  # type: ignore[call-overload] # noqa: PTH123
        for size in (2**20, 2**12, 1):
            try:
                while True:
                    target.write(b"\0" * size)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise


def file_size_limited(shot: Shot) -> None:
    """The trainer's files may not grow beyond a size any more."""
    job_id, armed, firing = _paused_trainer(shot, shot.rng.randint(1, 30), _FULL)
    limit = shot.rng.choice((0, 1_000, 100_000, 2_000_000))
    resource.prlimit(firing.pid, resource.RLIMIT_FSIZE, (limit, limit))
    armed.release()
    shot.fire(f"{limit} bytes for a file of {job_id}")
    _await_end(shot, job_id)


def write_refused(shot: Shot) -> None:
    """The trainer's nth write finds no room."""
    _tampered(shot, "write,pwrite64", f"error=ENOSPC:when={shot.rng.randint(1, 60)}", _FULL | _BROKEN)


def no_room_at_a_moment(shot: Shot, moment: str, latest: int) -> None:
    """No room as a checkpoint or the model is forced to disk."""
    _raised(shot, moment, latest, errno.ENOSPC, _FULL)


# --- broken ---


def io_error(shot: Shot, calls: str) -> None:
    """The trainer's nth system call of a kind fails with an I/O error."""
    _tampered(shot, calls, f"error=EIO:when={shot.rng.randint(1, 30)}", _BROKEN)


def io_error_at_a_moment(shot: Shot, moment: str, latest: int) -> None:
    """Forcing to disk fails, and the bytes are lost; it is not to be tried again on the same file."""
    _raised(shot, moment, latest, errno.EIO, _BROKEN, action="lose")


def _tampered(shot: Shot, calls: str, how: str, codes: frozenset[str]) -> None:
    job_id, armed, firing = _paused_trainer(shot, shot.rng.choice((1, 3, 30, 38)), codes)
    with tampering(firing.pid, calls, how) as trace:
        armed.release()
        deadline = time.monotonic() + _END_SECONDS
        while time.monotonic() < deadline and shot.world.runs(firing.pid):
            time.sleep(0.05)
        if trace.injected():
            shot.fire(f"{calls}, {how}, {job_id}")
    _await_end(shot, job_id)


def _raised(shot: Shot, moment: str, latest: int, number: int, codes: frozenset[str], action: Action = "raise") -> None:
    world = shot.world
    order = world.accepted(codes=codes)
    armed = world.moments.arm(moment, action, job=order.job_id, nth=shot.rng.randint(1, latest), errno=number)
    if firing := shot.await_fired(armed, _FIRE_SECONDS, unless=order.done):
        shot.fire(f"{errno.errorcode[number]} while {moment}, pid {firing.pid}, {order.job_id}")
    shot.wait(order.done, _END_SECONDS)


def _await_end(shot: Shot, job_id: str) -> None:
    order = next(order for order in shot.world.load.orders if order.job_id == job_id)
    shot.wait(order.done, _END_SECONDS)


# --- slow ---


def slow_to_sync(shot: Shot) -> None:
    """Each fsync takes two seconds more; nobody may take the job from a worker that lives."""
    job_id, armed, firing = _paused_trainer(shot, shot.rng.choice((1, 34)), frozenset())
    with shot.world.watch.excusing(job_id), tampering(firing.pid, "fsync,fdatasync", "delay_enter=2000000") as trace:
        armed.release()
        deadline = time.monotonic() + 5 * shot.world.lease
        while time.monotonic() < deadline and shot.world.runs(firing.pid):
            time.sleep(0.05)
        if trace.injected():
            shot.fire(f"{trace.injected()} slow syncs of {job_id}")
    row = shot.world.ledger.job(job_id) or {}
    shot.expect(row.get("attempt") == 1, f"{job_id} was taken from a worker whose disk is slow")
    _await_end(shot, job_id)


#: The moment, and at which of its kind at the latest.
_FORCED = {
    "a checkpoint is": ("writing checkpoint", 8),
    "the model is": ("writing artifact", 8),
    "the weights are": ("writing weights", 1),
}
_CALLS = {"fsync": "fsync,fdatasync", "rename": "rename,renameat,renameat2", "write": "write,pwrite64"}
ROWS = (
    Row(
        14,
        "disk full",
        40,
        {
            "filled up by something else": filled_up,
            "file size limited": file_size_limited,
            "nth write refused": write_refused,
            **{
                f"no room when {what} forced to disk": functools.partial(
                    no_room_at_a_moment, moment=moment, latest=latest
                )
                for what, (moment, latest) in _FORCED.items()
            },
        },
        alone=frozenset({"filled up by something else"}),
        needs={"filled up by something else": "mounts", "nth write refused": "strace"},
    ),
    Row(
        15,
        "nth I/O error",
        60,
        {
            **{f"EIO of {name}": functools.partial(io_error, calls=calls) for name, calls in _CALLS.items()},
            **{
                f"EIO when {what} forced to disk": functools.partial(io_error_at_a_moment, moment=moment, latest=latest)
                for what, (moment, latest) in _FORCED.items()
            },
        },
        needs={f"EIO of {name}": "strace" for name in _CALLS},
    ),
    Row(16, "slow disk", 15, {"two seconds for an fsync": slow_to_sync}, needs={"two seconds for an fsync": "strace"}),
)
