"""Manifests: what a published folder holds, each file with its SHA-256, written when all else is on the disk.

A folder without one was not written to its end; a folder that differs from it is not what was written.
"""

import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any, NoReturn

from storage.disk import force_directory, force_file

MANIFEST = "manifest.json"


def sha256(path: Path) -> str:
    """The SHA-256 of a file, hexadecimal."""
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def write(folder: Path) -> None:
    """Force all of a folder to the disk, the manifest last, then the folders that name them. Raises OSError."""
    names = sorted(_files(folder))
    sums = {name: sha256(folder / name) for name in names}
    for name in names:
        force_file(folder / name)
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({"sha256": sums}, indent=2) + "\n")
    force_file(manifest)
    for directory, _, _ in os.walk(folder, topdown=False, onerror=_raise):
        force_directory(Path(directory))


def differing(folder: Path) -> list[str]:
    """What is wrong with a published folder, a phrase for each file; nothing for one that is as it was written.

    Raises OSError where the disk can't be read, which says nothing of what was written.
    """
    if folder.is_symlink() or not folder.is_dir():
        return [f"{folder.name} is no folder" if os.path.lexists(folder) else f"{folder.name} is missing"]
    try:
        present = _files(folder)
        if links := sorted(name for name, regular in present.items() if not regular):
            # Before anything is opened: reading a pipe would never end.
            return [f"{name} is no regular file" for name in links]
        promised = recorded(folder)
        return _strays(set(present), set(promised)) or [
            f"{name} differs from its checksum"
            for name, expected in promised.items()
            if sha256(folder / name) != expected
        ]
    except ManifestError as error:
        return [str(error)]
    except FileNotFoundError as error:
        return [f"{Path(error.filename).name} is missing"]


def is_whole(folder: Path) -> bool:
    """Whether a folder is there, can be read, and is as it was written."""
    try:
        return not differing(folder)
    except OSError:
        return False


class ManifestError(Exception):
    """A folder has no manifest that can be read; the message says so."""


def recorded(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file of a published folder, by name. Raises ManifestError; OSError as the disk does."""
    try:
        content: Any = json.loads((folder / MANIFEST).read_bytes())
        sums = content["sha256"]
        if not all(isinstance(value, str) for value in sums.values()):
            raise TypeError
    except (FileNotFoundError, IsADirectoryError) as error:
        raise ManifestError(f"{MANIFEST} is missing") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ManifestError(f"{MANIFEST} can't be read") from error
    return dict(sums)


def _strays(present: set[str], promised: set[str]) -> list[str]:
    missing = [f"{name} is missing" for name in sorted(promised - present)]
    return missing + [f"{name} does not belong there" for name in sorted(present - promised - {MANIFEST})]


def _files(folder: Path) -> dict[str, bool]:
    """Every file below a folder, and whether it is a regular one. A link is none, wherever it leads."""
    found = {}
    for parent, folders, files in os.walk(folder, onerror=_raise):
        for name in (*folders, *files):
            mode = Path(parent, name).lstat().st_mode
            if not stat.S_ISDIR(mode):
                found[str(Path(parent, name).relative_to(folder))] = stat.S_ISREG(mode)
    return found


def _raise(error: OSError) -> NoReturn:
    raise error
