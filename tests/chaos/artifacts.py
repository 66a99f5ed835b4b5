"""The files of a fleet, looked at without the product's help."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any


def sha256(path: Path) -> str:
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def torn_models(root: Path, models: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """Models with a row whose folder isn't what its manifest says."""
    for model in models:
        if reason := difference(root / "models" / model["artifact"]):
            yield model["artifact"], reason


def difference(folder: Path) -> str | None:
    """In what a folder differs from its manifest; None for one that is whole."""
    try:
        sums = json.loads((folder / "manifest.json").read_text())["sha256"]
    except (OSError, ValueError, KeyError) as error:
        return f"no manifest ({error})"
    present = {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()} - {"manifest.json"}
    if present != set(sums):
        return f"holds {sorted(present ^ set(sums))} against its manifest"
    wrong = [name for name, expected in sums.items() if sha256(folder / name) != expected]
    return f"{wrong} have other sums" if wrong else None


def leftovers(root: Path, *, files: set[str], models: set[str], jobs: set[str]) -> Iterator[tuple[Path, int]]:
    """What belongs to nothing that exists, with its bytes: `files`, `models` and living `jobs` are what does."""
    owners = {"files": files, "models": models, "checkpoints": jobs, "unfinished": set[str](), "parts": set[str]()}
    for name, owned in owners.items():
        for path in sorted((root / name).iterdir() if (root / name).is_dir() else ()):
            if path.name not in owned:
                yield path, max(size_of(path), 1)


def size_of(path: Path) -> int:
    """The bytes of a file, or of all files below a folder."""
    if path.is_dir():
        return sum(size_of(entry) for entry in path.iterdir())
    return path.lstat().st_size
