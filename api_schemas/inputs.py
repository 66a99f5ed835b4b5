"""Whether a file and a model go together: one reads texts, another vectors."""

from api_schemas.files import DataFormat
from api_schemas.jobs import Contrastive, ModelOptions
from api_schemas.models import Reads

VECTOR_FORMATS: frozenset[DataFormat] = frozenset({"vectors", "vector_pairs"})
_OF_TEXTS = ("deletion", "span")
_OF_VECTORS = ("noise", "masking")
#: The base model for files of vectors.
ADAPTER = "adapter"


def wrong_file(model: str, reads: Reads, data_format: str) -> str | None:
    """Why a model can't be trained on rows of a format, in a sentence; None if it can."""
    holds_vectors = data_format in VECTOR_FORMATS
    if holds_vectors and reads == "texts":
        return (
            f"The file holds vectors, and {model} reads texts. Train an adapter on it, with `model`: {ADAPTER!r}, or "
            "send the texts that the vectors were made of."
        )
    if not holds_vectors and reads == "vectors":
        return (
            f"The file holds texts, and {model} reads vectors. Name a text encoder as `model`, or send the vectors "
            "of the texts."
        )
    return None


def wrong_option(contrastive: Contrastive, reads: Reads) -> tuple[str, str] | None:
    """The option that says nothing of what the model reads, if there is one: its path, and a sentence."""
    view, length = contrastive.data.view, contrastive.hyperparameters.max_seq_length
    if reads == "texts":
        if contrastive.model.adapter is not None:
            return "model.adapter", f"is for `model`: {ADAPTER!r}, and this model reads texts. Leave it out."
        if view in _OF_VECTORS:
            return (
                "data.view",
                f"{view!r} is for vectors, and this model reads texts. Choose dropout, deletion or span.",
            )
    elif view in _OF_TEXTS:
        return "data.view", f"{view!r} is for texts, and this model reads vectors. Choose noise, masking or dropout."
    elif isinstance(length, int):
        return "hyperparameters.max_seq_length", "counts tokens, and this model reads vectors. Leave it out."
    elif contrastive.export:
        return "export", "is for models that read texts, and this model reads vectors. Leave it out."
    elif (name := _option_of_texts(contrastive.model)) is not None:
        return f"model.{name}", "is for models that read texts, and this model reads vectors. Leave it out."
    return None


def _option_of_texts(model: ModelOptions) -> str | None:
    """The first option that is not as it is when nobody states it, but for the adapter's."""
    usual = ModelOptions(adapter=model.adapter)
    return next((name for name, value in model if value != getattr(usual, name)), None)
