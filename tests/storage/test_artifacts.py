from __future__ import annotations

import asyncio
import hashlib
import os
import resource
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from api_schemas.errors import LikenessError
from storage.artifacts import MANIFEST, ArtifactStore, StoredFile


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path)


@pytest.fixture
def published(store: ArtifactStore) -> Path:
    with store.publishing_model("model-1") as folder:
        (folder / "model.safetensors").write_bytes(bytes(range(256)))
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text("{}")
    return store.model("model-1")


def contents(root: Path) -> set[str]:
    """The files and folders below a store, but for its own three folders."""
    return {str(path.relative_to(root)) for path in root.rglob("*")} - {"files", "models", "unfinished"}


def write(store: ArtifactStore, *chunks: bytes, then: Exception | None = None) -> StoredFile:
    async def stream() -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk
        if then is not None:
            raise then

    return asyncio.run(store.write_file("file-1", stream()))


@contextmanager
def no_file_longer_than(size: int) -> Iterator[None]:
    """What a full disk is to a writer: the kernel refuses to make a file longer."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# --- files ---


def test_a_stored_file_is_what_was_sent(store: ArtifactStore, tmp_path: Path) -> None:
    stored = write(store, b"one\n", b"", b"two\n")

    assert stored == StoredFile(8, hashlib.sha256(b"one\ntwo\n").hexdigest())
    assert store.file("file-1").read_bytes() == b"one\ntwo\n"
    assert contents(tmp_path) == {"files/file-1"}


def test_a_stream_that_breaks_off_leaves_nothing(store: ArtifactStore, tmp_path: Path) -> None:
    with pytest.raises(ConnectionResetError):
        write(store, b"one\n", then=ConnectionResetError())

    assert contents(tmp_path) == set()


def test_a_full_disk_is_told_and_leaves_nothing(store: ArtifactStore, tmp_path: Path) -> None:
    with no_file_longer_than(100_000), pytest.raises(LikenessError) as refusal:
        write(store, *[b"x" * 30_000] * 4)

    assert refusal.value.code == "storage_full"
    assert "Free space" in refusal.value.message
    assert contents(tmp_path) == set()


def test_a_disk_that_is_full_only_at_the_last_flush_is_told_too(store: ArtifactStore, tmp_path: Path) -> None:
    with no_file_longer_than(50), pytest.raises(LikenessError) as refusal:
        write(store, b"x" * 100)

    assert refusal.value.code == "storage_full"
    assert contents(tmp_path) == set()


def test_a_deleted_file_is_gone_and_may_be_deleted_again(store: ArtifactStore, tmp_path: Path) -> None:
    write(store, b"one\n")

    for _ in range(2):
        store.delete_file("file-1")

    assert contents(tmp_path) == set()


# --- models ---


def test_a_published_model_is_complete_and_verifies(store: ArtifactStore, published: Path, tmp_path: Path) -> None:
    assert store.verify_model("model-1") == published
    assert contents(tmp_path) == {
        "models/model-1",
        "models/model-1/1_Pooling",
        "models/model-1/1_Pooling/config.json",
        "models/model-1/manifest.json",
        "models/model-1/model.safetensors",
    }


def test_nothing_is_visible_before_all_is_written(store: ArtifactStore) -> None:
    with store.publishing_model("model-1") as folder:
        (folder / "model.safetensors").write_bytes(b"weights")
        assert not store.model("model-1").exists()


def test_a_model_that_could_not_be_written_leaves_nothing(store: ArtifactStore, tmp_path: Path) -> None:
    with (
        no_file_longer_than(100),
        pytest.raises(OSError, match="too large"),
        store.publishing_model("model-1") as folder,
    ):
        (folder / "model.safetensors").write_bytes(b"x" * 1000)

    assert contents(tmp_path) == set()


def test_a_model_that_exists_is_never_replaced(store: ArtifactStore, published: Path) -> None:
    with pytest.raises(OSError, match="not empty"), store.publishing_model("model-1") as folder:
        (folder / "model.safetensors").write_bytes(b"other weights")

    assert store.verify_model("model-1") == published


def flip_a_bit(folder: Path) -> None:
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[100] ^= 1
    weights.write_bytes(content)


def cut_the_end(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 255)


CORRUPTIONS = {
    "a flipped bit": (flip_a_bit, "model.safetensors"),
    "a cut file": (cut_the_end, "model.safetensors"),
    "a missing file": (lambda folder: (folder / "1_Pooling" / "config.json").unlink(), "1_Pooling/config.json"),
    "a file too many": (lambda folder: (folder / "1_Pooling" / "extra.bin").write_text(""), "1_Pooling/extra.bin"),
    "a link too many": (lambda folder: (folder / "extra").symlink_to("/nonexistent"), "extra"),
    "no manifest": (lambda folder: (folder / MANIFEST).unlink(), MANIFEST),
    "an empty manifest": (lambda folder: (folder / MANIFEST).write_text(""), MANIFEST),
    "a manifest that is a list": (lambda folder: (folder / MANIFEST).write_text("[]"), MANIFEST),
    "a manifest of something else": (lambda folder: (folder / MANIFEST).write_text('{"sha256": null}'), MANIFEST),
    "a manifest of no names": (lambda folder: (folder / MANIFEST).write_text('{"sha256": 5}'), MANIFEST),
    "no folder": (lambda folder: folder.rename(folder.with_name("elsewhere")), MANIFEST),
}


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_corruption_is_found_and_named(store: ArtifactStore, published: Path, corruption: str) -> None:
    corrupt, name = CORRUPTIONS[corruption]
    corrupt(published)

    with pytest.raises(LikenessError) as refusal:
        store.verify_model("model-1")

    assert refusal.value.code == "artifact_corrupt"
    assert name in refusal.value.message


def test_a_deleted_model_is_gone_and_may_be_deleted_again(store: ArtifactStore, published: Path) -> None:
    for _ in range(2):
        store.delete_model("model-1")

    assert not published.exists()


# --- what crashed writers leave ---


def test_old_leftovers_are_removed_and_fresh_ones_are_not(store: ArtifactStore, tmp_path: Path) -> None:
    unfinished = tmp_path / "unfinished"
    for age, name in ((90_000, "old"), (60, "fresh")):
        (unfinished / f"{name}-folder").mkdir()
        (unfinished / f"{name}-folder" / "model.safetensors").write_bytes(b"half")
        (unfinished / f"{name}-file").write_bytes(b"half")
        for path in (unfinished / f"{name}-folder", unfinished / f"{name}-file"):
            changed = path.stat().st_mtime - age
            os.utime(path, (changed, changed))

    assert store.sweep_unfinished() == 2

    assert {path.name for path in unfinished.iterdir()} == {"fresh-folder", "fresh-file"}


def test_sweeping_minds_nothing_that_vanishes_meanwhile(store: ArtifactStore, tmp_path: Path) -> None:
    # Neither can be looked at: just like a file whose writer has finished since it was listed.
    (tmp_path / "unfinished" / "gone").symlink_to("/nonexistent")

    assert store.sweep_unfinished(older_than_seconds=-1) == 0
