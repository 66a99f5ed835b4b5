"""What a job on vectors needs before its training: a stand-in for the tokenizer, and what the adapter is to be.

Nothing here imports torch: the worker that prepares files has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from api_schemas.inputs import wrong_file
from api_schemas.methods import Method
from encoders.adapter_folder import AdapterShape, Form, check_adapter_folder
from encoders.tokenizer import TextTokenizer
from storage.tables import Job
from workers.data.preparation import Tokenized
from workers.data.prepared import Prepared

DEFAULT_FORM: Form = "linear"


class WrongAdapterError(Exception):
    """A job's file or options don't fit its adapter; the message is for whoever created it."""


class NoTokenizer:
    """Stands where a tokenizer would, for files of vectors, which have nothing to tokenize."""

    fingerprint = "vectors"
    max_seq_length = 0

    def __init__(self, model: str) -> None:
        self._model = model

    def __call__(self, _texts: Sequence[str]) -> Sequence[Tokenized]:
        """Raises WrongAdapterError: whoever calls it holds a file of texts."""
        raise WrongAdapterError(wrong_file(self._model, "vectors", "texts"))


def tokenizer_of(job: Job, folder: Path | None) -> TextTokenizer | NoTokenizer:
    """What makes tokens of the job's files; `folder` is its model's, if there is one. Raises EncoderError."""
    if job.reads == "vectors" or folder is None:
        return NoTokenizer(job.model)
    return TextTokenizer.of_folder(folder)


def with_form(method: Method, folder: Path | None, data: Prepared) -> Method:
    """The method with the adapter's form, after a look at the adapter that is trained further if there is one.

    Raises WrongAdapterError, and EncoderError for a folder that is no adapter's.
    """
    model = method.contrastive.model
    form = model.adapter or DEFAULT_FORM
    if folder is not None:
        form = _fitting(check_adapter_folder(folder), method, data)
    chosen = model.model_copy(update={"adapter": form})
    return method.model_copy(update={"contrastive": method.contrastive.model_copy(update={"model": chosen})})


def _fitting(tuned: AdapterShape, method: Method, data: Prepared) -> Form:
    check_dimension(tuned.dimension, data, "The adapter")
    asked = method.contrastive.model.adapter
    if asked not in (None, tuned.form):
        raise WrongAdapterError(
            f"`method.contrastive.model.adapter` is {asked!r}, and the adapter that is to be trained further is "
            f"{tuned.form!r}. Leave it out, or begin with `model`: 'adapter'."
        )
    return tuned.form


def check_dimension(dimension: int, data: Prepared, whose: str) -> None:
    """Raises WrongAdapterError unless the file's vectors have it."""
    if dimension_of(data) != dimension:
        raise WrongAdapterError(
            f"{whose} has {dimension} dimensions, and the file's vectors have {dimension_of(data)}. Take vectors that "
            "the same encoder made."
        )


def dimension_of(data: Prepared) -> int:
    """D of a file of vectors."""
    assert data.vectors is not None  # noqa: S101 (what the file holds was checked)
    return int(data.vectors.shape[1])
