"""Derived data: prepared datasets that are kept for the next job on the same file, and can always be made again.

An entry is a folder named by all that decides what is in it. Whoever uses one marks it, so that the least
recently used go first when room is wanted. A process that still reads an entry keeps its maps when it is swept.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import structlog

from encoders.prompts import Prompts
from workers.data.preparation import UNFINISHED, Tokenizer, prepare
from workers.data.prepared import MANIFEST, VERSION, Prepared, PreparedError
from workers.data.row import Row

log = structlog.get_logger("likeness.derived")

#: Which rows are made of a file: another number once the same bytes make others, as pairs with scores did.
_READING = 2
_UNFINISHED_SECONDS = 24 * 3600


def cache_key(source_sha256: str, *, options: Mapping[str, Any], tokenizer: str, limit: int) -> str:
    """The name of the entry for a file's bytes, read with `options` (JSON), tokenized and cut to `limit` tokens.

    tokenizer: its fingerprint, such as `TextTokenizer.fingerprint`.
    """
    decisive = {
        "version": VERSION,
        "reading": _READING,
        "source": source_sha256,
        "options": dict(options),
        "tokenizer": tokenizer,
        "limit": limit,
    }
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def cached(
    derived: Path,
    key: str,
    rows: Callable[[], Iterator[Row]],
    *,
    tokenizer: Tokenizer,
    limit: int,
    prompts: Prompts | None = None,
    progress: Callable[[int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Prepared:
    """Open the entry `key` of the directory `derived`, or prepare it from `rows()` if there is none that is whole.

    Raises what `prepare` raises.
    """
    folder = derived / key
    try:
        prepared = Prepared.open(folder)
    except FileNotFoundError:
        pass
    except PreparedError as error:
        log.warning("derived_data_made_again", reason=str(error))
    else:
        _mark_used(folder)
        return prepared
    return prepare(
        rows(), folder, tokenizer=tokenizer, limit=limit, prompts=prompts, progress=progress, should_stop=should_stop
    )


class _Entry(NamedTuple):
    used: float  # Unix time, seconds
    size: int  # bytes
    folder: Path


def sweep(derived: Path, keep_bytes: int) -> int:
    """Remove the least recently used entries until at most `keep_bytes` are left, and what crashed writers left.

    Returns the bytes that were removed.
    """
    removed, kept = 0, 0
    for entry in sorted(_entries(derived), reverse=True):
        unfinished = UNFINISHED in entry.folder.name
        if unfinished and entry.used > time.time() - _UNFINISHED_SECONDS:
            continue
        if not unfinished and kept + entry.size <= keep_bytes:
            kept += entry.size
            continue
        shutil.rmtree(entry.folder, ignore_errors=True)
        removed += entry.size
    return removed


def _entries(derived: Path) -> Iterator[_Entry]:
    for folder in derived.iterdir() if derived.is_dir() else ():
        try:
            marked = folder / MANIFEST
            used = (marked if marked.exists() else folder).stat().st_mtime
            yield _Entry(used, sum(path.stat().st_size for path in folder.iterdir()), folder)
        except (FileNotFoundError, NotADirectoryError):
            continue  # somebody else removed or renamed it, or it is none of ours


def _mark_used(folder: Path) -> None:
    try:
        os.utime(folder / MANIFEST)
    except FileNotFoundError:
        return  # swept this moment: the maps stay
