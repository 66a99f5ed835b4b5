"""Whether a file, a model and options go together: models read texts or vectors, and one is still to be made."""

from api_schemas.files import DataFormat
from api_schemas.methods import Contrastive, Method, ModelOptions, ScratchOptions
from api_schemas.models import Reads

VECTOR_FORMATS: frozenset[DataFormat] = frozenset({"vectors", "vector_pairs"})
_OF_TEXTS = ("deletion", "span")
_OF_VECTORS = ("noise", "masking")
#: The base model for files of vectors.
ADAPTER = "adapter"
#: The base model that a job makes of its own texts.
SCRATCH = "scratch"


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


def with_scratch(method: Method, model: str) -> Method:
    """The method of a job that starts from `model`, with the size of the encoder if the job makes it."""
    options = method.contrastive.model
    if model != SCRATCH or options.scratch is not None:
        return method
    options = options.model_copy(update={"scratch": ScratchOptions()})
    return method.model_copy(update={"contrastive": method.contrastive.model_copy(update={"model": options})})


def wrong_option(contrastive: Contrastive, model: str, reads: Reads) -> tuple[str, str] | None:
    """The option that says nothing of the model or of what it reads, if there is one: its path, and a sentence."""
    return _wrong_of_scratch(contrastive.model, model) or _wrong_of_inputs(contrastive, reads)


def _wrong_of_scratch(options: ModelOptions, model: str) -> tuple[str, str] | None:
    if model != SCRATCH:
        if options.scratch is None:
            return None
        return "model.scratch", f"is for `model`: {SCRATCH!r}, and {model} has a size of its own. Leave it out."
    kept = next((name for name in ("train", "freeze_layers") if getattr(options, name) not in ("full", 0)), None)
    if kept is None:
        return None
    return f"model.{kept}", f"keeps weights as they are, and those of {SCRATCH!r} are random. Leave it out."


def _wrong_of_inputs(contrastive: Contrastive, reads: Reads) -> tuple[str, str] | None:
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
