"""Similarity: the cosine of texts, or of vectors for an adapter, under a model."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from api_schemas.base import RequestModel, ResponseModel
from api_schemas.embeddings import MAX_INPUTS, EmbeddingUsage, Input, Inputs

InputPair = Annotated[list[Input], Field(min_length=2, max_length=2)]
MAX_PAIRS = MAX_INPUTS // 2


class SimilarityRequest(RequestModel):
    """Either `pairs`, or a `query` against `documents`: texts, or vectors for an adapter.

    A model with prompts has the query behind its prompt `query` and the documents behind its prompt `document`.
    """

    model: str = Field(description="A base model's name, a tuned model's id, or an alias.")
    pairs: Annotated[list[InputPair], Field(min_length=1, max_length=MAX_PAIRS)] | None = Field(
        default=None, description="Pairs of texts; one score each, in order."
    )
    input_type: str | None = Field(
        default=None,
        max_length=64,
        description="What the texts of `pairs` are, for models with prompts: query, document, or another's name.",
    )
    query: Input | None = Field(default=None, description="A text to compare with every document.")
    documents: Inputs | None = Field(default=None, description="Texts to rank by similarity to the query.")
    top_k: int | None = Field(
        default=None, ge=1, le=MAX_INPUTS, description="Return only the nearest so many documents."
    )

    @model_validator(mode="after")
    def _one_of_the_two_forms(self) -> Self:
        ranked = (self.query is not None, self.documents is not None)
        if self.pairs is not None and not any(ranked) and self.top_k is None:
            return self
        if self.pairs is None and all(ranked) and self.input_type is None:
            return self
        raise PydanticCustomError(
            "invalid_value",
            "send either 'pairs', or 'query' with 'documents' (and 'top_k' if you like); 'input_type' is for 'pairs'",
        )


class SimilarityScore(ResponseModel):
    """The cosine of one pair, or of the query and one document."""

    index: int = Field(description="The pair's or document's place in the request, from 0.")
    score: float = Field(description="Cosine similarity, −1 to 1.")


class SimilarityResponse(ResponseModel):
    """Scores: of pairs in their order, of documents from most to least alike."""

    object: Literal["list"] = "list"
    data: list[SimilarityScore]
    model: str = Field(description="As the request names it.")
    model_version: str = Field(description="The model that answered, which may be what an alias stands for.")
    usage: EmbeddingUsage
