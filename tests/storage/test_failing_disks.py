"""Disks that are full or fail, at whichever operation: nothing half-written is seen, and what was there stays."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from api_schemas.errors import LikenessError
from storage import disk, manifests
from storage.artifacts import ArtifactStore, StoredFile
from storage.checkpoints import JobCheckpoints
from storage.search_trials import SearchTrials
from tests.faults import Fault, Kind, at_every
from tests.markdown import ROOT
from tests.storage.deeds import CONTENT, fill, keep_checkpoint, keep_trial, publish, send_part, upload

#: What is refused, how, and whether it is done all the same.
TROUBLES: list[tuple[Kind, int, bool]] = [
    ("write", errno.ENOSPC, False),
    ("write", errno.EDQUOT, False),
    ("fsync", errno.EIO, False),
    ("fsync", errno.ENOSPC, False),
    ("rename", errno.EIO, False),
    ("rename", errno.EIO, True),
    ("rename", errno.ENOSPC, False),
    ("mkdir", errno.ENOSPC, False),
]
IDS = [f"{errno.errorcode[number]} at a {kind}{' that is done' if done else ''}" for kind, number, done in TROUBLES]


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "artifacts")


def below(store: ArtifactStore) -> dict[str, bytes]:
    return {str(path.relative_to(store.root)): path.read_bytes() for path in store.root.rglob("*") if path.is_file()}


def refusal_of(act: Callable[[], object]) -> Exception | None:
    try:
        act()
    except (LikenessError, OSError) as refusal:
        return refusal
    return None


# --- files and parts ---


def assemble(store: ArtifactStore) -> None:
    part = StoredFile(len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
    asyncio.run(store.assemble("file-2", "upload-0", [part]))


@pytest.mark.parametrize("receive", [upload, send_part, assemble])
@pytest.mark.parametrize(("kind", "number", "done"), TROUBLES, ids=IDS)
def test_bytes_received_are_kept_whole_or_refused_with_a_reason(
    store: ArtifactStore, receive: Callable[[ArtifactStore], None], kind: Kind, number: int, done: bool
) -> None:
    part = store.part("upload-0", hashlib.sha256(CONTENT).hexdigest())
    part.parent.mkdir()
    part.write_bytes(CONTENT)
    before = below(store)

    def run(fault: Fault) -> None:
        refusal = refusal_of(lambda: receive(store))
        new = {name: content for name, content in below(store).items() if name not in before}
        if not fault.fired:
            assert refusal is None
            assert list(new.values()) == [CONTENT]
            return
        assert isinstance(refusal, LikenessError), "what was refused was not told"
        assert refusal.code == ("storage_failed" if number == errno.EIO else "storage_full")
        assert (refusal.status, refusal.headers["Retry-After"]) == (503, "60")
        # A part may be there before it has a row: then it is whole, and goes with its upload.
        assert all(name.startswith("parts/") and content == CONTENT for name, content in new.items())

    failed = at_every(kind, number, store.root, run, done=done)

    expected = {"write": 1, "fsync": 2, "rename": 1, "mkdir": 0 if receive is not send_part else 1}
    assert failed >= expected[kind]
    assert list(store.unfinished.iterdir()) == []


# --- folders ---


def keep_first_checkpoint(store: ArtifactStore) -> None:
    with JobCheckpoints(store, "ftjob-2").publishing(4) as folder:
        fill(folder)


@pytest.mark.parametrize("act", [publish, keep_checkpoint, keep_first_checkpoint, keep_trial])
@pytest.mark.parametrize(("kind", "number", "done"), TROUBLES, ids=IDS)
def test_a_folder_is_published_whole_or_not_at_all(
    store: ArtifactStore, act: Callable[[ArtifactStore], None], kind: Kind, number: int, done: bool
) -> None:
    with JobCheckpoints(store, "ftjob-1").publishing(2) as folder:
        fill(folder)
    with SearchTrials(store, "ftjob-1").publishing("trial", 0) as folder:
        fill(folder)
    before = below(store)

    def run(fault: Fault) -> None:
        refusal = refusal_of(lambda: act(store))
        if fault.fired:
            assert isinstance(refusal, OSError), "what was refused was not told"
            assert refusal.errno == number
            assert below(store) == before
        else:
            assert refusal is None

    failed = at_every(kind, number, store.root, run, done=done)

    # The files, their manifest, their folders and the one they come into; who fails at none of them checks nothing.
    assert failed >= {"write": 3, "fsync": 6, "rename": 1, "mkdir": 2}[kind]
    [new] = {Path(name).parent for name in below(store).keys() - before.keys() if name.endswith("manifest.json")}
    assert manifests.differing(store.root / new) == []


@pytest.mark.parametrize("number", disk.FULL + disk.FAILING)
def test_every_trouble_has_a_name(number: int) -> None:
    error = OSError(number, "x")
    assert disk.is_full(error) != disk.is_failing(error)


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES, errno.EMFILE])
def test_what_is_not_the_disks_fault_is_not_called_so(number: int) -> None:
    error = OSError(number, "x")
    assert not disk.is_full(error)
    assert not disk.is_failing(error)


def test_what_can_not_be_removed_is_told(store: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(store)
    monkeypatch.setattr(shutil, "rmtree", lambda *_arguments, **_options: None)

    assert store.delete_model("ftjob-1-1") is False


# --- the system itself says no ---

DEED = """
import sys
from pathlib import Path
from storage.artifacts import ArtifactStore

with ArtifactStore(Path(sys.argv[1])).publishing_model("ftjob-1-1") as folder:
    (folder / "model.safetensors").write_bytes(b"one" * 1000)
"""
CALLS = {
    "fsync": (errno.EIO, 4),
    "rename": (errno.EIO, 1),
    "write": (errno.ENOSPC, 2),
}


def works(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not works("strace", "-e", "trace=fsync", "true"), reason="strace is missing or may not trace")
@pytest.mark.parametrize("call", CALLS)
def test_a_system_call_that_is_refused_publishes_nothing(tmp_path: Path, call: str) -> None:
    number, at_least = CALLS[call]
    store = ArtifactStore(tmp_path / "artifacts")
    refused = 0
    for nth in range(1, 30):
        log = tmp_path / f"{call}-{nth}"
        named = f"?{call},?{call}at,?{call}at2" if call == "rename" else call
        inject = f"inject={named}:error={errno.errorcode[number]}:when={nth}"
        strace = ["strace", "-f", "-o", str(log), "-e", f"trace={named}", "-e", inject]
        done = subprocess.run(
            [*strace, sys.executable, "-B", "-c", DEED, str(store.root)], capture_output=True, cwd=ROOT
        )
        if "(INJECTED)" not in log.read_text():
            assert done.returncode == 0, done.stderr
            break
        refused += 1
        assert done.returncode != 0
        assert store.models() == []
        assert list(store.unfinished.iterdir()) == []
    assert refused >= at_least
    assert store.damage_of("ftjob-1-1") is None


SMALL_DISK = """
import asyncio, json, shutil, sys
from pathlib import Path
from api_schemas.errors import LikenessError
from storage.artifacts import ArtifactStore
from storage.checkpoints import JobCheckpoints

store = ArtifactStore(Path(sys.argv[1]) / "artifacts")
checkpoints = JobCheckpoints(store, "ftjob-1")
told = {}

async def stream(size):
    for _ in range(size // 10_000):
        yield b"x" * 10_000

def tried(name, work):
    try:
        work()
        told[name] = "done"
    except LikenessError as refusal:
        told[name] = refusal.code
    except OSError as error:
        told[name] = error.errno

def upload(name, size):
    asyncio.run(store.write_file(name, stream(size)))

def publish(name, size):
    with store.publishing_model(name) as folder:
        (folder / "model.safetensors").write_bytes(b"x" * size)

def keep(step, size):
    with checkpoints.publishing(step) as folder:
        (folder / "encoder.safetensors").write_bytes(b"x" * size)

tried("first upload", lambda: upload("file-1", 200_000))
tried("first checkpoint", lambda: keep(1, 200_000))
tried("upload", lambda: upload("file-2", 800_000))
tried("checkpoint", lambda: keep(2, 800_000))
tried("model", lambda: publish("ftjob-1-1", 800_000))
told["left"] = sorted(str(p.relative_to(store.root)) for p in store.root.rglob("*") if p.is_file())
told["whole"] = checkpoints.differing(1) == []
store.delete_file("file-1")
checkpoints.remove(1)
tried("model with room", lambda: publish("ftjob-1-1", 800_000))
told["damage"] = store.damage_of("ftjob-1-1")
print(json.dumps(told))
"""


@pytest.mark.skipif(
    not works("unshare", "-rm", "sh", "-c", "mount -t tmpfs none /mnt"), reason="a namespace can't be made here"
)
def test_a_small_disk_that_is_really_full_keeps_what_it_has(tmp_path: Path) -> None:
    mount = 'mount -t tmpfs -o size=1m none "$0" && exec "$@"'
    command = [
        "unshare",
        "-rm",
        "sh",
        "-c",
        mount,
        str(tmp_path),
        sys.executable,
        "-B",
        "-c",
        SMALL_DISK,
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)

    assert told["first upload"] == told["first checkpoint"] == "done"
    assert told["upload"] == "storage_full"
    assert told["checkpoint"] == told["model"] == errno.ENOSPC
    assert told["whole"]
    assert told["left"] == [
        "checkpoints/ftjob-1/1/encoder.safetensors",
        "checkpoints/ftjob-1/1/manifest.json",
        "files/file-1",
    ]
    assert told["model with room"] == "done"
    assert told["damage"] is None
