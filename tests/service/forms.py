"""Multipart forms byte by byte, what becomes of them in the artifact store, and a disk that has no room for it."""

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path

from storage.ownership import OWNER
from tests.installation import Installation


def form(*parts: tuple[str, bytes], boundary: str = "b") -> bytes:
    """A multipart form; each part is its Content-Disposition's parameters and its content."""
    pieces = [
        f"--{boundary}\r\nContent-Disposition: form-data; {disposition}\r\n\r\n".encode() + content + b"\r\n"
        for disposition, content in parts
    ]
    return b"".join(pieces) + f"--{boundary}--\r\n".encode()


def stored(installation: Installation, folder: str = "") -> list[str]:
    """The names of everything in the artifact store, but for what says whose it is."""
    root: Path = installation.settings.artifacts_dir / folder
    found = (path for path in root.rglob("*") if path.is_file())
    return sorted(path.name for path in found if path.name != OWNER)


@contextlib.contextmanager
def no_file_beyond(size: int) -> Iterator[None]:
    """Have the kernel refuse this process any file longer than `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
