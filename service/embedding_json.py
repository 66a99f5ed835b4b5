"""The bodies of answers with embeddings, made from the array without an object for each number."""

import base64
import json
from collections.abc import Iterable
from typing import Literal

import numpy as np
import numpy.typing as npt

from api_schemas.embeddings import EmbeddingUsage
from service.json_numbers import json_rows


def embedding_response_body(
    vectors: npt.NDArray[np.float32],
    encoding_format: Literal["float", "base64"],
    *,
    model: str,
    version: str,
    usage: EmbeddingUsage,
) -> bytes:
    """The JSON of an api_schemas.embeddings.EmbeddingResponse for vectors (n, d) float32.

    base64 is that of a row's bytes, little-endian. Raises ValueError for floats that aren't finite.
    """
    rows = json_rows(vectors) if encoding_format == "float" else _base64_rows(vectors)
    data = b",".join(
        b'{"object":"embedding","index":%d,"embedding":%b}' % (index, row) for index, row in enumerate(rows)
    )
    ending = {"model": model, "model_version": version, "usage": usage.model_dump()}
    return b'{"object":"list","data":[%b],%b' % (data, json.dumps(ending, separators=(",", ":")).encode()[1:])


def rows_body(vectors: npt.NDArray[np.float32]) -> bytes:
    """The JSON array of arrays for vectors (n, d) float32. Raises ValueError for what isn't finite."""
    return b"[%b]" % b",".join(json_rows(vectors))


def _base64_rows(vectors: npt.NDArray[np.float32]) -> Iterable[bytes]:
    little_endian = np.ascontiguousarray(vectors, dtype="<f4")
    return (b'"%b"' % base64.b64encode(row) for row in little_endian)
