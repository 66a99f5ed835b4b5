"""The bytes of an answer with embeddings hold what pydantic would have written."""

import base64

import numpy as np
import pytest

from api_schemas.embeddings import EmbeddingResponse, EmbeddingUsage
from service.embedding_json import embedding_response_body, rows_body

VECTORS = np.random.default_rng(1).normal(size=(3, 5)).astype(np.float32)
USAGE = EmbeddingUsage(prompt_tokens=7, total_tokens=7, truncated=[1])


@pytest.mark.parametrize("encoding_format", ["float", "base64"])
@pytest.mark.parametrize("vectors", [VECTORS, VECTORS[:, ::2], VECTORS[:1], np.asfortranarray(VECTORS)])
def test_the_body_is_the_response_that_the_schema_describes(vectors: np.ndarray, encoding_format: str) -> None:
    model = 'a "quoted" name, \N{GREEK SMALL LETTER ALPHA}'
    body = embedding_response_body(vectors, encoding_format, model=model, version="m", usage=USAGE)
    told = EmbeddingResponse.model_validate_json(body)
    assert (told.object, told.model, told.model_version, told.usage) == ("list", model, "m", USAGE)
    assert [(item.object, item.index) for item in told.data] == [("embedding", index) for index in range(len(vectors))]
    for item, vector in zip(told.data, vectors, strict=True):
        if encoding_format == "base64":
            read = np.frombuffer(base64.b64decode(item.embedding), dtype="<f4")
        else:
            read = np.float32(item.embedding)
        np.testing.assert_array_equal(read, vector)


def test_rows_alone_are_an_array_of_arrays() -> None:
    assert rows_body(np.float32([[0.5, -2.0], [0.0, 1.0]])) == (
        b"[[ 5.00000000e-01,-2.00000000e+00],[ 0.00000000e+00, 1.00000000e+00]]"
    )
