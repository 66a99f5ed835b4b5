"""What is left on a disk when power is lost: what was forced onto it, and of all else whatever the disk likes.

Two disks stand for all: one that has lost every name that was not forced (`forced`), and one that has every name, but
of files that were not forced no bytes (`early`), as a journal leaves them that writes names before contents.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import pytest

Names = Literal["forced", "early"]


class PowerLoss:
    """Watches a folder. What is there at the beginning is on the disk."""

    def __init__(self, root: Path, at_each: Callable[[], None]) -> None:
        self._root = root
        self._at_each = at_each
        self._bytes: dict[int, bytes] = {}  # of files that were forced, by inode
        self._names: dict[int, list[tuple[str, int, bool]]] = {}  # of folders: name, inode, whether it is a folder
        self._held: list[int] = []  # open, so that no other file gets the inode
        for path in (root, *root.rglob("*")):
            self.force(path)

    def force(self, path: Path) -> None:
        """The bytes of a file, or the names of a folder, are on the disk."""
        self._held.append(os.open(path, os.O_RDONLY))
        inode = path.stat().st_ino
        if path.is_dir():
            self._names[inode] = [(entry.name, entry.inode(), entry.is_dir()) for entry in os.scandir(path)]
        else:
            self._bytes[inode] = path.read_bytes()

    def fsync(self, descriptor: int) -> None:
        """What the system's does; before, power may be lost."""
        self._at_each()
        self.force(Path(f"/proc/self/fd/{descriptor}").readlink())

    def left(self, target: Path, names: Names) -> None:
        """Write what would be left now to a new folder."""
        if names == "forced":
            self._write_forced(self._root.stat().st_ino, target)
        else:
            self._write_early(self._root, target)

    def close(self) -> None:
        for descriptor in self._held:
            os.close(descriptor)

    def _write_forced(self, inode: int, target: Path) -> None:
        target.mkdir()
        for name, child, is_folder in self._names.get(inode, []):
            if is_folder:
                self._write_forced(child, target / name)
            else:
                (target / name).write_bytes(self._bytes.get(child, b""))

    def _write_early(self, source: Path, target: Path) -> None:
        target.mkdir()
        for path in source.iterdir():
            if path.is_dir():
                self._write_early(path, target / path.name)
            else:
                (target / path.name).write_bytes(self._bytes.get(path.stat().st_ino, b""))


@contextmanager
def losing_power(
    root: Path, *, at_each: Callable[["PowerLoss"], None] | None = None, fsync: bool = True
) -> Iterator[PowerLoss]:
    """Watch a folder during the block. `at_each` is called before each fsync; without `fsync`, none does anything."""
    loss = PowerLoss(root, lambda: at_each(loss) if at_each else None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", loss.fsync if fsync else lambda _descriptor: None)
        try:
            yield loss
        finally:
            loss.close()
