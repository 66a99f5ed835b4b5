"""A dataset as training reads it: arrays in files, mapped into memory and never loaded as a whole.

A folder, written once by `workers.data.preparation`. R rows, I items (each input of each row, also where one
occurs again), T tokens of all items, D width of a vector:

    row_starts.npy  (R + 1,) int64    row r has the items row_starts[r] … row_starts[r + 1] − 1
    contents.npy    (I,)     int64    equal where the inputs are equal, see `workers.data.contents`
    labels.npy      (R,)     int32    only for rows that have labels
    labels.json                       their names
    scores.npy      (R,)     float64  only for scored pairs
    starts.npy      (I + 1,) int64    texts only: item i is ids[starts[i]:starts[i + 1]]
    ids.npy         (T,)     int32    texts only
    vectors.npy     (I, D)   float32  vectors only
    manifest.json                     sizes, checksums and counts; written last

Errors
└── PreparedError        a folder is not, or no longer, what was written
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from api_schemas.files import DataFormat
from storage.manifests import sha256

#: What this module writes and reads. Another number is another form, and is made again.
VERSION = 1
MANIFEST = "manifest.json"
LABEL_NAMES = "labels.json"
_ARRAYS: dict[str, tuple[type[np.generic], int]] = {
    "row_starts": (np.int64, 1),
    "contents": (np.int64, 1),
    "labels": (np.int32, 1),
    "scores": (np.float64, 1),
    "starts": (np.int64, 1),
    "ids": (np.int32, 1),
    "vectors": (np.float32, 2),
}


class PreparedError(Exception):
    """A folder of prepared arrays is torn, altered or foreign; the message says what is wrong with it."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """A prepared dataset; see the top of the module. Arrays are read-only maps of files."""

    folder: Path
    format: DataFormat
    row_starts: npt.NDArray[np.int64]
    contents: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int32] | None
    label_names: list[str]
    scores: npt.NDArray[np.float64] | None
    starts: npt.NDArray[np.int64] | None
    ids: npt.NDArray[np.int32] | None
    vectors: npt.NDArray[np.float32] | None
    distinct: int  # inputs that differ from one another
    truncated: int  # items of which some tokens are not read
    fingerprint: str  # SHA-256 of what the manifest promises, and so of all of it, and of what is chosen
    chosen: npt.NDArray[np.integer[Any]] | None = None  # rows that are used, ascending; None: all. See `narrowed`

    @classmethod
    def open(cls, folder: Path, *, checksums: bool = True) -> Self:
        """Map a folder's arrays. Sizes are always compared with the manifest; `checksums` reads every byte once.

        Raises PreparedError, or FileNotFoundError if there is no folder.
        """
        if not folder.is_dir():
            raise FileNotFoundError(folder)
        manifest = _manifest(folder)
        _check_files(folder, manifest["files"], checksums=checksums)
        try:
            arrays = {name: _map(folder, name) for name in _ARRAYS if f"{name}.npy" in manifest["files"]}
            names = json.loads((folder / LABEL_NAMES).read_text("utf-8"))
            prepared = cls(
                folder=folder,
                format=manifest["format"],
                label_names=names,
                distinct=manifest["distinct"],
                truncated=manifest["truncated"],
                fingerprint=_fingerprint(manifest),
                **{name: arrays.get(name) for name in _ARRAYS},  # type: ignore[arg-type]
            )
            _check_shapes(prepared)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise PreparedError(f"{folder.name} cannot be read: {error}") from error
        return prepared

    def __len__(self) -> int:
        """R, the number of rows."""
        return len(self.row_starts) - 1

    @property
    def items(self) -> int:
        """I, the inputs of all rows."""
        return len(self.contents)

    def narrowed(self, rows: npt.NDArray[np.integer[Any]]) -> Self:
        """The same maps, of which only these rows are drawn into batches: nothing is copied or renumbered.

        rows: ascending, none twice. `len` and `items` go on counting what is stored. The fingerprint is another.
        """
        digest = hashlib.sha256(self.fingerprint.encode())
        digest.update(rows.astype("<i8").tobytes())
        return replace(self, chosen=rows, fingerprint=digest.hexdigest())

    @property
    def rows(self) -> npt.NDArray[np.integer[Any]]:
        """The rows that are used, ascending."""
        return np.arange(len(self)) if self.chosen is None else self.chosen

    @property
    def row_count(self) -> int:
        """How many rows are used."""
        return len(self) if self.chosen is None else len(self.chosen)


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
        version = manifest["version"]
    except FileNotFoundError as error:
        raise PreparedError(f"{folder.name} has no {MANIFEST}: it was not written to its end.") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PreparedError(f"{folder.name}/{MANIFEST} cannot be read: {error!r}") from error
    if version != VERSION:
        raise PreparedError(f"{folder.name} is of version {version!r}; this program reads version {VERSION}.")
    if not isinstance(manifest.get("files"), dict):
        raise PreparedError(f"{folder.name}/{MANIFEST} lists no files.")
    return dict(manifest)


def _fingerprint(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _check_files(folder: Path, files: dict[str, Any], *, checksums: bool) -> None:
    for name, promised in files.items():
        try:
            size = (folder / name).stat().st_size
            if size != promised["bytes"]:
                raise PreparedError(f"{folder.name}/{name} has {size} bytes instead of {promised['bytes']}.")
            if checksums and sha256(folder / name) != promised["sha256"]:
                raise PreparedError(f"{folder.name}/{name} differs from its checksum.")
        except (OSError, KeyError, TypeError) as error:
            raise PreparedError(f"{folder.name}/{name} cannot be read: {error!r}") from error


def _map(folder: Path, name: str) -> npt.NDArray[Any]:
    dtype, dimensions = _ARRAYS[name]
    array: npt.NDArray[Any] = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
    if array.dtype != dtype or array.ndim != dimensions:
        raise ValueError(f"{name} is {array.ndim}-dimensional {array.dtype}")
    # A plain array over the same map: every slice of a np.memmap costs ten times as much.
    return array.view(np.ndarray)


def _check_shapes(prepared: Prepared) -> None:
    """Whether the arrays fit together at their ends; what lies between is the checksums' matter."""
    rows, items = len(prepared), prepared.items
    fits = [
        prepared.row_starts[0] == 0 and prepared.row_starts[-1] == items,
        prepared.labels is None or len(prepared.labels) == rows,
        (prepared.scores is None) != (prepared.format == "scored_pairs"),
        prepared.scores is None or len(prepared.scores) == rows,
        (prepared.vectors is None) != (prepared.ids is None),
        prepared.vectors is None or len(prepared.vectors) == items,
        prepared.starts is None or len(prepared.starts) == items + 1,
        prepared.ids is None or (prepared.starts is not None and prepared.starts[-1] == len(prepared.ids)),
    ]
    if not all(fits):
        raise ValueError("its arrays do not fit together")
