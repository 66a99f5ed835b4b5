"""Row 7: an API process is killed between its commit and the queue, in the middle of a request or of an upload."""

from __future__ import annotations

import functools
import socket
import time

from tests.chaos.faults.row import Row
from tests.chaos.shots import Shot
from tests.chaos.specs import content
from tests.chaos.tracing import tampering
from tests.chaos.world import NotReachedError

_FIRE_SECONDS = 20.0
#: The reconciler finds what nobody has handed over.
_ENQUEUED_SECONDS = 10.0


def killed_at_a_moment(shot: Shot, moment: str, most: int) -> None:
    """The process that a client's request reaches is killed at the nth time that a moment comes."""
    world = shot.world
    armed = world.moments.arm(moment, process="api-1", nth=shot.rng.randint(1, most))
    orders = [world.load.order() for _ in range(2)]
    firing = shot.await_fired(armed, _FIRE_SECONDS)
    if firing is None:
        return
    shot.fire(f"api-1, pid {firing.pid}, {moment}")
    for order in orders:
        shot.wait(order.accepted, _FIRE_SECONDS * 2)
        _expect_on_its_way(shot, order.job_id)


def killed_at_a_receive(shot: Shot) -> None:
    """Killed by the kernel as it reads its nth piece of anything, from a client or from a server."""
    world = shot.world
    member = world.fleet.members["api-1"]
    with world.claim("api-1"), tampering(member.pid, "recvfrom", f"signal=KILL:when={shot.rng.randint(1, 40)}"):
        orders = [world.load.order() for _ in range(2)]
        deadline = time.monotonic() + _FIRE_SECONDS
        while member.runs and time.monotonic() < deadline:
            time.sleep(0.02)
        if not member.runs:
            shot.fire(f"api-1, pid {member.pid}, as it received")
    for order in orders:
        shot.wait(order.accepted, _FIRE_SECONDS * 2)
        _expect_on_its_way(shot, order.job_id)


def killed_mid_upload(shot: Shot) -> None:
    """Killed when half of a file has come."""
    world = shot.world
    name = f"half-{shot.rng.randrange(10**9)}.jsonl"
    member = world.fleet.members["api-1"]
    port = int(member.env["LIKENESS_PORT"])
    head, body = _upload_request(name, content("pairs") * 200, world.fleet.key)
    with world.claim("api-1"):
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
                connection.sendall(head + body[: len(body) // 2])
                time.sleep(shot.rng.uniform(0, 0.3))
                world.kill(member.pid)
        except OSError as error:
            raise NotReachedError(f"api-1 did not take half of {name}: {error}") from error
        shot.fire(f"api-1, pid {member.pid}, with half of {name}")
    client = world.load.client("uploader")
    listed = client.insist("GET", "/v1/files?limit=100").body["data"]
    client.close()
    shot.expect(name not in [file["filename"] for file in listed], f"half of {name} is listed as a file")


def _expect_on_its_way(shot: Shot, job_id: str | None) -> None:
    world = shot.world

    def handed_over() -> bool:
        row = world.ledger.job(job_id or "")
        return row is not None and (row["preparations_begun"] > 0 or row["state"] != "validating_files")

    if job_id is not None:
        shot.within(_ENQUEUED_SECONDS, handed_over, f"{job_id} is worked on")


def _upload_request(filename: str, data: bytes, key: str) -> tuple[bytes, bytes]:
    boundary = "chaos-boundary"
    body = (
        (
            f'--{boundary}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
            f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{filename}"\r\n\r\n'
        ).encode()
        + data
        + f"\r\n--{boundary}--\r\n".encode()
    )
    head = (
        f"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: multipart/form-data; boundary={boundary}\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode()
    return head, body


ROWS = (
    Row(
        7,
        "API killed",
        40,
        {
            "between commit and enqueue": functools.partial(killed_at_a_moment, moment="before enqueue", most=1),
            "before a commit": functools.partial(killed_at_a_moment, moment="before commit", most=6),
            "after a commit": functools.partial(killed_at_a_moment, moment="after commit", most=6),
            "at a receive": killed_at_a_receive,
            "mid-upload": killed_mid_upload,
        },
        needs={"at a receive": "strace"},
    ),
)
