"""What a job would do with a file: batches, steps, anchors, by the same choices that a job makes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from api_schemas.batches import batches_an_epoch
from api_schemas.defaults import resolve
from api_schemas.files import DataFormat
from api_schemas.inputs import ADAPTER, with_scratch
from api_schemas.methods import ContrastiveHyperparameters, Method
from api_schemas.reports import TrainingPlan
from workers.data.profile import Profile


@dataclass(frozen=True)
class Setting:
    """How a file would be trained on."""

    model: str
    max_seq_length: int | None  # of the model; None: it reads vectors
    method: Method = field(default_factory=Method)


def batch_size_asked(batch_size: int | None) -> Method:
    """The method with this batch size, all else being automatic."""
    method = Method()
    if batch_size is not None:
        method.contrastive.hyperparameters = ContrastiveHyperparameters(batch_size=batch_size)
    return method


def plan(profile: Profile, setting: Setting) -> TrainingPlan | None:
    """What a job would do with the rows; None if there are none, or none that are trained on."""
    if not profile.rows or profile.format == "scored_pairs":
        return None
    # No text encoder reads vectors: an adapter is what can be trained on them.
    if profile.vectors is not None:
        setting = replace(setting, model=ADAPTER, max_seq_length=None)
    asked = with_scratch(setting.method, setting.model)
    method = resolve(asked, None, rows=profile.rows, max_seq_length=setting.max_seq_length)
    chosen = method.contrastive.hyperparameters
    n_epochs, batch_size = int(chosen.n_epochs), int(chosen.batch_size)
    rows = min(batch_size, profile.rows)
    # Of each plain text two views are made.
    texts = 2 * rows if profile.format == "texts" else round(rows * profile.inputs / profile.rows)
    # Of labelled rows that are equal, one is trained on.
    trained = profile.rows if profile.labels is None else profile.rows - profile.duplicates.rows
    steps = n_epochs * batches_an_epoch(trained, batch_size)
    return TrainingPlan(
        model=setting.model,
        n_epochs=n_epochs,
        batch_size=batch_size,
        steps=min(steps, chosen.max_steps or steps),
        texts_per_step=texts,
        anchors_per_step=_anchors(profile.format, rows, texts, method.contrastive.loss.symmetric),
        learning_rate=float(chosen.learning_rate),
        max_seq_length=chosen.max_seq_length if isinstance(chosen.max_seq_length, int) else None,
    )


def _anchors(data_format: DataFormat | None, rows: int, texts: int, symmetric: bool | None) -> int:
    if data_format in ("pairs", "triplets", "vector_pairs"):
        return rows if symmetric is False else 2 * rows  # hard negatives ask nothing
    return texts
