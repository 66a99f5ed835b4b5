from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import resource
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from api_schemas.errors import LikenessError
from storage import manifests
from storage.artifacts import AlreadyPublishedError, ArtifactStore, StoredFile
from storage.manifests import MANIFEST


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
    """The files and folders below a store, but for its own folders."""
    own = {"files", "parts", "models", "checkpoints", "unfinished"}
    return {str(path.relative_to(root)) for path in root.rglob("*")} - own


async def stream(*chunks: bytes, then: Exception | None = None) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk
    if then is not None:
        raise then


def write(store: ArtifactStore, *chunks: bytes, then: Exception | None = None) -> StoredFile:
    return asyncio.run(store.write_file("file-1", stream(*chunks, then=then)))


def receive(store: ArtifactStore, content: bytes, *, keep: bool = True) -> StoredFile:
    async def run() -> StoredFile:
        async with store.receiving_part("upload-1", stream(content)) as part:
            if keep:
                store.keep_part("upload-1", part)
        return part.stored

    return asyncio.run(run())


def assemble(store: ArtifactStore, *parts: StoredFile, md5: str | None = None) -> StoredFile:
    return asyncio.run(store.assemble("file-1", "upload-1", parts, md5))


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


def test_old_files_are_those_that_have_been_there_for_long(store: ArtifactStore, tmp_path: Path) -> None:
    write(store, b"one\n")
    assert store.old_files() == []

    os.utime(store.file("file-1"), (0, 0))

    assert store.old_files() == ["file-1"]


# --- parts ---


def test_parts_become_a_file_in_the_order_asked_for(store: ArtifactStore, tmp_path: Path) -> None:
    one, two = receive(store, b"one\n" * 600_000), receive(store, b"two\n")
    whole = b"two\n" + b"one\n" * 600_000

    stored = assemble(store, two, one, md5=hashlib.md5(whole).hexdigest())

    assert stored == StoredFile(len(whole), hashlib.sha256(whole).hexdigest())
    assert store.file("file-1").read_bytes() == whole
    assert list((tmp_path / "unfinished").iterdir()) == []
    assert store.uploads_with_parts() == ["upload-1"]
    for _ in range(2):
        store.delete_parts("upload-1")
    assert contents(tmp_path) == {"files/file-1"}


def test_a_part_that_is_not_kept_leaves_nothing(store: ArtifactStore, tmp_path: Path) -> None:
    receive(store, b"one\n", keep=False)

    assert contents(tmp_path) == set()


def test_a_part_sent_twice_takes_room_once_and_mends_the_first(store: ArtifactStore, tmp_path: Path) -> None:
    part = receive(store, b"one\n")
    (tmp_path / "parts" / "upload-1" / part.sha256).write_bytes(b"rot\n")

    assert receive(store, b"one\n") == part

    assert contents(tmp_path) == {"parts/upload-1", f"parts/upload-1/{part.sha256}"}
    assert assemble(store, part) == StoredFile(4, part.sha256)


@pytest.mark.parametrize("left", [None, b"", b"two", b"twO\n", b"two\ntwo\n"])
def test_a_part_that_is_not_what_was_received_makes_no_file(
    store: ArtifactStore, tmp_path: Path, left: bytes | None
) -> None:
    one, two = receive(store, b"one\n"), receive(store, b"two\n")
    path = tmp_path / "parts" / "upload-1" / two.sha256
    path.unlink()
    if left is not None:
        path.write_bytes(left)

    with pytest.raises(LikenessError) as refusal:
        assemble(store, one, two)

    assert (refusal.value.code, refusal.value.param) == ("artifact_corrupt", "part_ids.1")
    assert not store.file("file-1").exists()
    assert list((tmp_path / "unfinished").iterdir()) == []


def test_a_whole_of_another_md5_makes_no_file(store: ArtifactStore) -> None:
    one, two = receive(store, b"one\n"), receive(store, b"two\n")

    with pytest.raises(LikenessError) as refusal:
        assemble(store, two, one, md5=hashlib.md5(b"one\ntwo\n").hexdigest())

    assert (refusal.value.code, refusal.value.param) == ("checksum_mismatch", "md5")
    assert hashlib.md5(b"two\none\n").hexdigest() in refusal.value.message
    assert not store.file("file-1").exists()


def test_a_disk_full_while_assembling_is_told_and_keeps_the_parts(store: ArtifactStore, tmp_path: Path) -> None:
    one, two = receive(store, b"1" * 60_000), receive(store, b"2" * 60_000)

    with no_file_longer_than(100_000), pytest.raises(LikenessError) as refusal:
        assemble(store, one, two)

    assert refusal.value.code == "storage_full"
    assert not store.file("file-1").exists()
    assert assemble(store, one, two).bytes == 120_000


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
    with pytest.raises(AlreadyPublishedError), store.publishing_model("model-1") as folder:
        (folder / "model.safetensors").write_bytes(b"other weights")

    assert store.verify_model("model-1") == published


def flip_a_bit(folder: Path) -> None:
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[100] ^= 1
    weights.write_bytes(content)


def cut_the_end(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 255)


def link_the_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.symlink_to(path.rename(folder.parent.parent / "elsewhere"))


def link_a_folder(folder: Path) -> None:
    path = folder / "1_Pooling"
    path.symlink_to(path.rename(folder.parent.parent / "elsewhere"))


def link_the_folder(folder: Path) -> None:
    folder.symlink_to(folder.rename(folder.with_name("elsewhere")))


def put_a_folder(folder: Path) -> None:
    (folder / "1_Pooling" / "config.json").unlink()
    (folder / "1_Pooling" / "config.json").mkdir()


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
    "an empty file": (lambda folder: os.truncate(folder / "model.safetensors", 0), "model.safetensors"),
    "a link to the same bytes": (link_the_weights, "model.safetensors"),
    "a link for a folder": (link_a_folder, "1_Pooling"),
    "a link to a folder too many": (lambda folder: (folder / "more").symlink_to(folder / "1_Pooling"), "more"),
    "a pipe": (lambda folder: os.mkfifo(folder / "pipe"), "pipe"),
    "a folder for a file": (put_a_folder, "1_Pooling/config.json"),
    "a folder for the manifest": (lambda folder: (folder / MANIFEST).unlink() or (folder / MANIFEST).mkdir(), MANIFEST),
    "a manifest nested too deep": (lambda folder: (folder / MANIFEST).write_text("[" * 100_000), MANIFEST),
    "no folder": (lambda folder: folder.rename(folder.with_name("elsewhere")), "model-1 is missing"),
    "a link for all of it": (link_the_folder, "model-1 is no folder"),
}


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_corruption_is_found_and_named(store: ArtifactStore, published: Path, corruption: str) -> None:
    corrupt, name = CORRUPTIONS[corruption]
    corrupt(published)

    with pytest.raises(LikenessError) as refusal:
        store.verify_model("model-1")

    assert refusal.value.code == "artifact_corrupt"
    assert name in refusal.value.message


def test_a_model_in_anothers_place_is_found_by_its_rows_checksum(store: ArtifactStore, published: Path) -> None:
    weights = hashlib.sha256(bytes(range(256))).hexdigest()
    assert store.verify_model("model-1", weights_sha256=weights) == published

    with pytest.raises(LikenessError) as refusal:
        store.verify_model("model-1", weights_sha256="0" * 64)

    assert (refusal.value.code, refusal.value.headers["x-should-retry"]) == ("artifact_corrupt", "false")


def test_of_much_that_is_wrong_some_is_named(store: ArtifactStore, published: Path) -> None:
    for number in range(5):
        (published / f"{number}.py").touch()

    assert store.damage_of("model-1") == ", ".join(f"{n}.py does not belong there" for n in range(3)) + " and 2 more"


def test_a_disk_that_can_not_be_read_is_no_damage(
    store: ArtifactStore, published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(path: Path) -> str:
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr(manifests, "sha256", read)

    with pytest.raises(OSError, match="Input/output error"):
        store.damage_of("model-1")
    assert not manifests.is_whole(published)


@pytest.mark.parametrize("damage", ["altered", "gone", "a link", "no manifest"])
def test_a_card_that_is_not_what_was_written_is_refused(store: ArtifactStore, damage: str) -> None:
    with store.publishing_model("model-2") as folder:
        (folder / "README.md").write_text("# A model")
    card = store.model("model-2") / "README.md"
    assert store.card("model-2") == "# A model"
    if damage == "altered":
        card.write_text("# Another")
    elif damage == "no manifest":
        (card.parent / MANIFEST).unlink()
    else:
        aside = card.rename(card.with_name("aside"))
        if damage == "a link":
            card.symlink_to(aside.rename(store.root / "aside"))

    with pytest.raises(LikenessError) as refusal:
        store.card("model-2")

    assert refusal.value.code == "artifact_corrupt"


def test_a_model_without_a_card_has_none(store: ArtifactStore, published: Path) -> None:
    with pytest.raises(FileNotFoundError):
        store.card("model-1")


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
