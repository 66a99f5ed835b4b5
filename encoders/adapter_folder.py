"""What an adapter's folder may hold, checked before any library sees it: `encoders.folder`'s counterpart.

Nothing here imports torch: whoever prepares a job's files looks at its adapter too.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, cast

from encoders.errors import UnsafeFolderError
from encoders.folder import WEIGHTS, check_entry, check_weights, read_json

Form = Literal["linear", "mlp"]

CONFIG = "adapter.json"
KIND = "vector-adapter"
FORMS: tuple[Form, ...] = ("linear", "mlp")

_CONFIG_LIMIT = 1 << 16
# The pictures are those of the model card.
_FILES = {CONFIG, WEIGHTS, "README.md", "training.svg", "cosines.svg", "manifest.json"}
#: What files of vectors hold at most.
_LARGEST_DIMENSION = 16384


@dataclass(frozen=True)
class AdapterShape:
    """What `adapter.json` says."""

    form: Form
    dimension: int


def check_adapter_folder(folder: Path) -> AdapterShape:
    """Refuse a folder that holds anything but one adapter; returns its shape.

    Raises UnsafeFolderError, whose message names the file and the remedy.
    """
    if folder.is_symlink() or not folder.is_dir():
        raise UnsafeFolderError(f"{folder} is not a folder; links are not followed.")
    for parent, folders, files in os.walk(folder):
        inside = PurePosixPath(Path(parent).relative_to(folder).as_posix())
        for name in (*folders, *files):
            check_entry(folder, inside / name, _FILES)
    for needed in (CONFIG, WEIGHTS):
        if not (folder / needed).is_file():
            raise UnsafeFolderError(f"{needed} is missing from {folder}; copy it from the model's source.")
    check_weights(folder / WEIGHTS)
    return _shape(read_json(folder, CONFIG, limit=_CONFIG_LIMIT))


def _shape(config: Any) -> AdapterShape:
    # All of it and nothing else: an unknown setting may change what the weights mean.
    if not isinstance(config, dict) or config.keys() != {"kind", "form", "dimension"}:
        raise UnsafeFolderError(f"{CONFIG} must hold an object with 'kind', 'form' and 'dimension', and nothing else.")
    kind, form, dimension = config["kind"], config["form"], config["dimension"]
    if kind != KIND or form not in FORMS:
        raise UnsafeFolderError(f"{CONFIG} must have 'kind' {KIND!r}, and as 'form' one of {', '.join(FORMS)}.")
    if type(dimension) is not int or not 1 <= dimension <= _LARGEST_DIMENSION:
        raise UnsafeFolderError(f"{CONFIG} must hold a whole number from 1 to {_LARGEST_DIMENSION} as 'dimension'.")
    return AdapterShape(cast(Form, form), dimension)
