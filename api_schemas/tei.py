"""What clients of Hugging Face's text-embeddings-inference (version 1.9) send and expect."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from api_schemas.base import RequestModel, ResponseModel
from api_schemas.embeddings import MAX_INPUTS, text_in, texts_in

ErrorType = Literal["Unhealthy", "Backend", "Overloaded", "Validation", "Empty"]
#: The most characters whose tokens are told at a time, prompts included: of the costliest text, they take a second.
MAX_TOKENIZED_CHARACTERS = 100_000


def _one_or_more(value: Any) -> list[str]:
    return [text_in(value, "inputs")] if isinstance(value, str) else texts_in(value, "inputs")


#: One text or a list; always a list once parsed.
TextInputs = Annotated[
    list[str],
    BeforeValidator(_one_or_more, json_schema_input_type=str | list[str]),
    Field(min_length=1, max_length=MAX_INPUTS),
]
Sentence = Annotated[str, BeforeValidator(lambda value: text_in(value, "the sentence"))]
Sentences = Annotated[
    list[str],
    BeforeValidator(lambda value: texts_in(value, "sentences"), json_schema_input_type=list[str]),
    Field(min_length=1, max_length=MAX_INPUTS),
]


class TextOptions(RequestModel):
    """How texts are read."""

    truncate: bool | None = Field(
        default=None, description="false refuses a text that is longer than the model reads; else it is cut."
    )
    truncation_direction: Literal["Left", "left", "Right", "right"] = Field(
        default="Right", description="Texts are cut at their end only: with Left, one that had to be cut is refused."
    )
    prompt_name: str | None = Field(
        default=None, max_length=64, description="The model's prompt to put before each text."
    )


class EmbedRequest(TextOptions):
    """Texts to embed."""

    inputs: TextInputs = Field(description=f"One text, or up to {MAX_INPUTS}.")
    normalize: bool = Field(
        default=True, description="Vectors have length 1 in any case: that is part of every model here."
    )
    dimensions: int | None = Field(
        default=None, ge=1, description="Keep the first so many dimensions and normalise again."
    )


class SentenceSimilarityInputs(RequestModel):
    """A sentence, and those to compare it with."""

    source_sentence: Sentence
    sentences: Sentences


class SentenceSimilarityRequest(RequestModel):
    """A sentence, those to compare it with, and how they are read."""

    inputs: SentenceSimilarityInputs
    parameters: TextOptions | None = None


class TokenizeRequest(RequestModel):
    """Texts whose tokens are asked for."""

    inputs: TextInputs = Field(description=f"Up to {MAX_TOKENIZED_CHARACTERS} characters in all.")
    add_special_tokens: bool = Field(default=True, description="With those that the model reads around a text.")
    prompt_name: str | None = Field(
        default=None, max_length=64, description="The model's prompt to put before each text."
    )


class SimpleToken(ResponseModel):
    """A token, and the bytes of the text's UTF-8 that it stands for."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


class EmbeddingModelType(ResponseModel):
    """How the model makes one vector of its tokens' states."""

    pooling: str


class ModelType(ResponseModel):
    """Every model here embeds."""

    embedding: EmbeddingModelType


class Info(ResponseModel):
    """The model, and what requests may hold."""

    model_id: str
    model_sha: str | None = Field(description="SHA-256 of the weights, where it is known.")
    model_dtype: Literal["float32"] = "float32"
    served_model_name: str
    model_type: ModelType
    max_concurrent_requests: int = Field(description="Connections that this process takes.")
    max_input_length: int = Field(description="Tokens of a text that the model reads.")
    max_batch_tokens: int = Field(description="Tokens that one forward pass may hold.")
    max_batch_requests: int | None = None
    max_client_batch_size: int = MAX_INPUTS
    auto_truncate: Literal[True] = True
    tokenization_workers: int
    version: str = Field(description="Of Likeness.")
    sha: str | None = None
    docker_label: str | None = None


class TeiErrorBody(ResponseModel):
    """An error in the shape of text-embeddings-inference, with Likeness' own code and field beside it."""

    error: str = Field(description="What went wrong.")
    error_type: ErrorType
    code: str = Field(description="One of Likeness' error codes.")
    param: str | None = Field(description="The field that is wrong.")
    request_id: str | None
