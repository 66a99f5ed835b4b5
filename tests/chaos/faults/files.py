"""Row 17: checkpoints and models that are torn or rotten on disk."""

from __future__ import annotations

import functools
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.chaos.faults.row import Row
from tests.chaos.shots import Shot
from tests.chaos.specs import CHECKPOINT_EVERY

_FIRE_SECONDS = 60.0
_END_SECONDS = 60.0

Damage = Callable[[Path, random.Random], str]


def _some_file(folder: Path, rng: random.Random) -> Path:
    return rng.choice(sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size))


def truncated(folder: Path, rng: random.Random) -> str:
    path = _some_file(folder, rng)
    size = rng.randrange(max(path.stat().st_size - 1, 1))  # without the line's end alone JSON says the same
    with path.open("r+b") as target:
        target.truncate(size)
    return f"{path.name} cut to {size} bytes"


def flipped(folder: Path, rng: random.Random) -> str:
    path = _some_file(folder, rng)
    at, bit = rng.randrange(path.stat().st_size), rng.randrange(8)
    with path.open("r+b") as target:
        target.seek(at)
        byte = target.read(1)[0]
        target.seek(at)
        target.write(bytes([byte ^ 1 << bit]))
    return f"bit {bit} of byte {at} of {path.name}"


def zeroed(folder: Path, rng: random.Random) -> str:
    path = max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = path.read_bytes()
    size = len(content)
    # Some of it must not be zeros already.
    count = rng.randint(size - len(content.rstrip(b"\0")) + 1, size)
    with path.open("r+b") as target:
        target.seek(size - count)
        target.write(b"\0" * count)
    return f"the last {count} bytes of {path.name} are 0"


def emptied(folder: Path, rng: random.Random) -> str:
    path = _some_file(folder, rng)
    path.write_bytes(b"")
    return f"{path.name} is empty"


def without_manifest(folder: Path, rng: random.Random) -> str:
    (folder / "manifest.json").unlink()
    return "no manifest"


def linked(folder: Path, rng: random.Random) -> str:
    path = _some_file(folder, rng)
    elsewhere = folder.parent / f".{folder.name}-{path.name}"
    path.rename(elsewhere)
    elsewhere.write_bytes(elsewhere.read_bytes()[:-1] + b"\0")
    path.symlink_to(elsewhere)
    return f"{path.name} is a symbolic link to something else"


def swapped(folder: Path, rng: random.Random) -> str:
    """The newest two checkpoints' weights in each other's place."""
    other = max(path for path in folder.parent.iterdir() if path != folder and path.is_dir())
    name = "encoder.safetensors"
    first, second = (folder / name).read_bytes(), (other / name).read_bytes()
    (folder / name).write_bytes(second)
    (other / name).write_bytes(first)
    return f"the weights of {folder.name} and {other.name} changed places"


def checkpoint_damaged(shot: Shot, damage: Damage) -> None:
    """The newest checkpoint is damaged, then its trainer killed: the next attempt takes the newest that is whole."""
    world = shot.world
    order = world.accepted()
    step = 2 * CHECKPOINT_EVERY + shot.rng.randint(2, 25)
    armed = world.moments.arm("before step", "pause", job=order.job_id, attempt=1, nth=step)
    firing = shot.await_fired(armed, _FIRE_SECONDS, unless=order.done)
    if firing is None:
        return
    root = world.fleet.data / "artifacts" / "checkpoints" / (order.job_id or "")
    newest = max((path for path in root.iterdir() if path.name.isdecimal()), key=lambda path: int(path.name))
    shot.fire(f"{damage(newest, shot.rng)}, step {newest.name} of {order.job_id}")
    shot.died(order.job_id or "", 1, at=world.kill(firing.pid), lease=False)
    shot.wait(order.done, _END_SECONDS)
    events = world.ledger.events(order.job_id or "")
    told = [event for event in events if event["level"] == "warn" and f"step {newest.name}" in event["message"]]
    shot.expect(told, f"no event says that the checkpoint of step {newest.name} of {order.job_id} was passed over")


def model_damaged(shot: Shot, damage: Damage) -> None:
    """A published model is damaged before anybody asks for it: it is never served."""
    world = shot.world
    order = world.accepted()
    shot.wait(order.done, _END_SECONDS)
    model = next((row for row in world.ledger.models() if row["job_id"] == order.job_id), None)
    if model is None:
        return
    folder = world.fleet.data / "artifacts" / "models" / model["artifact"]
    with _kept_whole(folder, world.fleet.folder / f"kept-{folder.name}"):
        what = damage(folder, shot.rng)
        client = world.load.client("reader")
        url = world.fleet.url_of("inference-1")
        answer = client.ask("POST", "/v1/embeddings", url=url, json={"model": model["id"], "input": "a word"})
        client.close()
        if answer.known:
            shot.fire(f"{what}, of the model {model['id']}")
            shot.expect(answer.code == "artifact_corrupt", f"a damaged model got {answer.status} {answer.code}")


@contextmanager
def _kept_whole(folder: Path, beside: Path) -> Iterator[None]:
    """A folder is after the block as it was before, whatever is done to it."""
    shutil.copytree(folder, beside)
    try:
        yield
    finally:
        for path in folder.parent.glob(f".{folder.name}-*"):
            path.unlink()
        shutil.rmtree(folder)
        shutil.move(beside, folder)


_DAMAGES: dict[str, Damage] = {
    "truncated": truncated,
    "a bit flipped": flipped,
    "its tail zeroed": zeroed,
    "a file emptied": emptied,
    "without manifest": without_manifest,
    "a file replaced by a link": linked,
}
ROWS = (
    Row(
        17,
        "torn and rotten files",
        80,
        {
            **{
                f"checkpoint {name}": functools.partial(checkpoint_damaged, damage=damage)
                for name, damage in {**_DAMAGES, "swapped with another": swapped}.items()
            },
            **{f"model {name}": functools.partial(model_damaged, damage=damage) for name, damage in _DAMAGES.items()},
        },
    ),
)
