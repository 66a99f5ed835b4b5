"""A folder as a tar, streamed: nothing is written anywhere, and memory holds one chunk."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_CHUNK_BYTES = 1024 * 1024


@dataclass(frozen=True)
class Archive:
    """A tar of a folder's files, the folder's own name left out, by name; `size` in bytes is known before the first.

    Owners, times and modes are the same for every machine, so that equal folders are equal archives.
    """

    folder: Path
    names: list[str]

    @classmethod
    def of_folder(cls, folder: Path) -> Archive:
        """All regular files below a folder. A link is no part of it, wherever it leads."""
        found = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
        return cls(folder, sorted(str(path.relative_to(folder)) for path in found))

    @property
    def size(self) -> int:
        # Each file comes behind a header and is filled up to whole blocks; two empty blocks end it.
        sizes = [self._bytes_of(name) for name in self.names]
        return sum(tarfile.BLOCKSIZE + size + -size % tarfile.BLOCKSIZE for size in sizes) + 2 * tarfile.BLOCKSIZE

    def chunks(self) -> Iterator[bytes]:
        """Raises OSError when a file is gone or shorter than it was."""
        for name in self.names:
            yield from self._member(name)
        yield bytes(2 * tarfile.BLOCKSIZE)

    def _member(self, name: str) -> Iterator[bytes]:
        size = left = self._bytes_of(name)
        info = tarfile.TarInfo(name)
        info.size = size
        yield info.tobuf(tarfile.USTAR_FORMAT)
        with (self.folder / name).open("rb") as file:
            while left:
                chunk = file.read(min(_CHUNK_BYTES, left))
                if not chunk:
                    raise OSError(f"{name} became shorter while it was read.")
                left -= len(chunk)
                yield chunk
        yield bytes(-size % tarfile.BLOCKSIZE)

    def _bytes_of(self, name: str) -> int:
        return (self.folder / name).stat().st_size
