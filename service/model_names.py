"""From a model's name in a request to what stands behind it: a base encoder, or one of the team's own. Or an alias."""

from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.orm import Session

from api_schemas.errors import LikenessError
from api_schemas.models import Reads
from encoders import registry
from storage import aliases, models
from storage.settings import StorageSettings
from storage.tables import Model


@dataclass(frozen=True)
class NamedModel:
    """What a name stands for. `artifact` is a tuned model's folder in the store, None for a base model."""

    name: str
    base_model: str
    artifact: str | None
    weights_sha256: str | None
    dimension: int | None  # None: it is still to be trained
    max_seq_length: int | None  # None: it reads vectors
    reads: Reads = "texts"
    damage: str | None = None  # what was found wrong with a tuned model's folder


def find_model(session: Session, settings: StorageSettings, name: str) -> NamedModel:
    """The model called `name`, or that an alias of the session's team stands for; its own name is then another.

    Raises LikenessError `model_not_found`. The name is looked up in tables and never becomes part of a path.
    """
    found = find_model_itself(session, settings, name)
    if found is None and (alias := aliases.find(session, name)) is not None:
        found = find_model_itself(session, settings, alias.model)
    if found is None:
        raise model_not_found(name)
    return found


def find_model_itself(session: Session, settings: StorageSettings, name: str) -> NamedModel | None:
    """The model called `name`, if it is a base model or one of the session's team."""
    row = models.find(session, name)
    return of_row(row) if row is not None else base_models(settings.base_models_dir).get(name)


def model_not_found(name: str) -> LikenessError:
    """What is said of a name that stands for no model."""
    message = f"There is no model {name!r}; GET /v1/models lists those there are, GET /v1/aliases your names for them."
    return LikenessError("model_not_found", message, param="model")


def base_models(base_models_dir: Path | None) -> dict[str, NamedModel]:
    """The base models of this installation, by name."""
    return {
        name: NamedModel(name, name, None, base.weights_sha256, base.dimension, base.max_seq_length, base.reads)
        for name, base in registry.available(base_models_dir).items()
    }


def of_row(row: Model) -> NamedModel:
    """A tuned model."""
    return NamedModel(
        row.id,
        row.base_model,
        row.artifact,
        row.weights_sha256,
        row.dimension,
        row.max_seq_length,
        row.reads,
        row.damage,
    )
