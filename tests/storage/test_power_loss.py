"""Whenever power is lost, what can be seen is whole, and what was promised is there."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from storage import manifests
from storage.artifacts import ArtifactStore
from tests.power_loss import Names, PowerLoss, losing_power
from tests.storage.deeds import CONTENT, keep_checkpoint, keep_trial, publish, send_part, upload

#: What is done, and where its result is.
DEEDS: dict[str, tuple[Callable[[ArtifactStore], None], str]] = {
    "an upload": (upload, "files/file-1"),
    "a part": (send_part, "parts/upload-1"),
    "a model": (publish, "models/ftjob-1-1"),
    "a checkpoint": (keep_checkpoint, "checkpoints/ftjob-1/4"),
    "a trial": (keep_trial, "checkpoints/ftjob-1/trial-1"),
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
