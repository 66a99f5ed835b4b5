"""Whenever power is lost, what can be seen is whole, and what was promised is there."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from storage import manifests
from storage.artifacts import ArtifactStore
from storage.checkpoints import JobCheckpoints
from storage.search_trials import SearchTrials
from tests.power_loss import Names, PowerLoss, losing_power

CONTENT = b"one\n" * 1000


async def stream() -> AsyncIterator[bytes]:
    yield CONTENT[:100]
    yield CONTENT[100:]


def fill(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(CONTENT)
    (folder / "1_Pooling" / "more").mkdir(parents=True)
    (folder / "1_Pooling" / "more" / "config.json").write_text("{}")


def upload(store: ArtifactStore) -> None:
    asyncio.run(store.write_file("file-1", stream()))


def send_part(store: ArtifactStore) -> None:
    async def run() -> None:
        async with store.receiving_part("upload-1", stream()) as part:
            store.keep_part("upload-1", part)

    asyncio.run(run())


def publish(store: ArtifactStore) -> None:
    with store.publishing_model("ftjob-1-1") as folder:
        fill(folder)


def keep_checkpoint(store: ArtifactStore) -> None:
    with JobCheckpoints(store, "ftjob-1").publishing(3) as folder:
        fill(folder)


def keep_trial(store: ArtifactStore) -> None:
    with SearchTrials(store, "ftjob-1").publishing("trial", 0) as folder:
        fill(folder)


#: What is done, and where its result is.
DEEDS: dict[str, tuple[Callable[[ArtifactStore], None], str]] = {
    "an upload": (upload, "files/file-1"),
    "a part": (send_part, "parts/upload-1"),
    "a model": (publish, "models/ftjob-1-1"),
    "a checkpoint": (keep_checkpoint, "checkpoints/ftjob-1/3"),
    "a trial": (keep_trial, "checkpoints/ftjob-1/trial-0"),
}


def is_whole(path: Path) -> bool:
    if path.is_file():
        return path.read_bytes() == CONTENT
    if path.parent.name == "parts":
        return all(manifests.sha256(part) == part.name for part in path.iterdir())
    return manifests.is_whole(path)


def survives(root: Path, deed: str, *, fsync: bool = True) -> None:
    """Do it, and lose power before each fsync and at the end. Raises AssertionError."""
    act, place = DEEDS[deed]
    store = ArtifactStore(root / "artifacts")
    numbers = itertools.count()

    def after(loss: PowerLoss, names: Names) -> Path:
        target = root / f"{names}-{next(numbers)}"
        loss.left(target, names)
        return target / place

    def at_each(loss: PowerLoss) -> None:
        for names in ("forced", "early"):
            found = after(loss, names)
            assert not found.exists() or is_whole(found), f"half of it with names {names}"

    with losing_power(root / "artifacts", at_each=at_each, fsync=fsync) as loss:
        act(store)
        at_each(loss)
        promised = after(loss, "forced")
        assert promised.exists(), "it was promised, and is gone"
        assert is_whole(promised)
        assert promised.is_file() or any(promised.iterdir())


@pytest.mark.parametrize("deed", DEEDS)
def test_what_is_there_after_power_was_lost_is_whole(tmp_path: Path, deed: str) -> None:
    survives(tmp_path, deed)


@pytest.mark.parametrize("deed", DEEDS)
def test_without_fsync_it_would_not_be(tmp_path: Path, deed: str) -> None:
    """The control: were one left out, the test above would fail."""
    with pytest.raises(AssertionError):
        survives(tmp_path, deed, fsync=False)


@contextmanager
def written_in_place(_store: ArtifactStore, target: Path, *, name: str) -> Iterator[Path]:
    target.mkdir()
    yield target
    manifests.write(target)


@pytest.mark.parametrize("deed", ["a model", "a checkpoint", "a trial"])
def test_without_rename_it_would_not_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deed: str) -> None:
    """The control: written where it is to be, half of it could be seen."""
    monkeypatch.setattr(ArtifactStore, "publishing", written_in_place)

    with pytest.raises(AssertionError, match="half of it"):
        survives(tmp_path, deed)
