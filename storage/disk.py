"""The disk below the artifacts: what is forced onto it, what is removed from it, and what it says when it fails.

A failed fsync tells once that bytes are lost and forgets it; asked again of the same file it would say that all is
well. So whoever sees one fail gives up what was written and begins with other files, if at all.
"""

import errno
import os
import shutil
from contextlib import suppress
from pathlib import Path

import structlog

log = structlog.get_logger("likeness.disk")

#: What the system says where a disk is full, or somebody's share of it, or a file may not grow.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
#: What it says of a disk that fails: it can't be read or written, was made read-only for that, or is out of reach. The
#: last two are how file systems call their own damage.
FAILING = (errno.EIO, errno.EROFS, errno.ESTALE, errno.EBADMSG, errno.EUCLEAN)


def is_full(error: BaseException) -> bool:
    """Whether an error is that of a full disk."""
    return isinstance(error, OSError) and error.errno in FULL


def is_failing(error: BaseException) -> bool:
    """Whether an error is that of a disk that fails."""
    return isinstance(error, OSError) and error.errno in FAILING


def force_file(path: Path) -> None:
    """Have a file's bytes on the disk. Raises OSError; then the file is not to be used."""
    with path.open("rb") as source:
        os.fsync(source.fileno())


def force_directory(directory: Path) -> None:
    """Have the names in a folder on the disk, as a rename is only then. Raises OSError."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directory(path: Path) -> None:
    """Make a folder unless it is there, and have its name on the disk. Raises OSError; then it is not there."""
    try:
        path.mkdir()
    except FileExistsError:
        return
    try:
        force_directory(path.parent)
    except OSError:
        with suppress(OSError):  # somebody else has put something into it meanwhile
            path.rmdir()
        raise


def remove(path: Path) -> bool:
    """Remove a file, a link or a folder with all that is in it. Whether it is gone; if not, the log says so."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        _unlink(path)
    gone = not os.path.lexists(path)
    if not gone:
        log.warning("not_removed", path=str(path))
    return gone


def _unlink(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("unlink_failed", path=str(path), reason=error.strerror)
