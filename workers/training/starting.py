"""What a job starts from, and what it leaves behind: a text encoder's folder, or an adapter's, or none yet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch

from api_schemas.methods import Contrastive
from encoders import export, onnx
from encoders.loading import AnyEncoder, load
from encoders.text import TextEncoder
from encoders.vectors import VectorAdapter
from storage.tables import Job
from workers.adapters import DEFAULT_FORM, dimension_of
from workers.data.prepared import Prepared
from workers.training.adaptation import adaptation_of


def encoder_of(job: Job, method: Contrastive, folder: Path | None, training: Prepared) -> AnyEncoder:
    """What is trained: the folder's encoder, as the job wants it, or an untrained adapter for the vectors.

    Raises EncoderError.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if folder is not None:
        encoder = load(folder, job.reads, device=device)
        if isinstance(encoder, TextEncoder):
            adaptation_of(method.model).prepare(encoder, seed=job.seed)
        return encoder
    form = method.model.adapter or DEFAULT_FORM
    return VectorAdapter.untrained(form, dimension_of(training), seed=job.seed, device=device)


def save(
    encoder: AnyEncoder, folder: Path, *, base_folder: Path | None, formats: Sequence[Literal["onnx"]] = ()
) -> None:
    """Write the model's folder, and what else was asked for. Raises what `encoders.export.save` raises."""
    if isinstance(encoder, TextEncoder):
        assert base_folder is not None  # noqa: S101 (a text encoder was loaded from it)
        export.save(encoder, folder, base_folder=base_folder)
        if "onnx" in formats:
            onnx.write(folder)
    else:
        encoder.save(folder)


def usage_of(encoder: AnyEncoder) -> str | None:
    """How to use its folder without this service, in Markdown; None for text encoders, which other libraries open."""
    return None if isinstance(encoder, TextEncoder) else encoder.usage()


def notes_of(encoder: AnyEncoder) -> str:
    """What else to know when it is used, in Markdown."""
    return export.notes(encoder) if isinstance(encoder, TextEncoder) else ""


def length_asked(method: Contrastive, most: int) -> int:
    """How many tokens of a text are kept, of the `most` that the encoder reads; 0 where it reads vectors."""
    asked = method.hyperparameters.max_seq_length
    return min(asked, most) if isinstance(asked, int) else 0


def length_read(encoder: AnyEncoder) -> int | None:
    """How many tokens of a text it reads; None if it reads vectors."""
    return encoder.max_seq_length if isinstance(encoder, TextEncoder) else None
