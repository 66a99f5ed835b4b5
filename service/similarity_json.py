"""Answers with scores, as one JSON value or as a line for each score."""

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any

import numpy as np
import numpy.typing as npt
from fastapi import Request
from fastapi.responses import Response, StreamingResponse

from api_schemas.similarity import SimilarityUsage
from service.json_numbers import json_numbers, json_rows

NDJSON = "application/x-ndjson"
#: For `responses=` of a route.
NDJSON_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": f"All scores; with `Accept: {NDJSON}` each of `data` on a line, and last a SimilarityUsage.",
        "content": {NDJSON: {"schema": {"type": "string"}}},
    }
}
_SCORES_AT_ONCE = 2**14


def score_items(scores: npt.NDArray[np.float32], places: Sequence[int]) -> Iterator[bytes]:
    """A SimilarityScore for each of (n,) scores; `places` are their indices in the request."""
    numbers = json_numbers(scores)
    return (b'{"index":%d,"score":%b}' % (index, number) for index, number in zip(places, numbers, strict=True))


def row_items(matrix: npt.NDArray[np.float32]) -> Iterator[bytes]:
    """A SimilarityRow for each row of (n, m) scores, written when it is asked for."""
    at_once = max(1, _SCORES_AT_ONCE // matrix.shape[1])
    blocks = (json_rows(matrix[first : first + at_once]) for first in range(0, len(matrix), at_once))
    return (b'{"index":%d,"scores":%b}' % numbered for numbered in enumerate(chain.from_iterable(blocks)))


def similarity_response(http: Request, items: Iterator[bytes], usage: SimilarityUsage) -> Response:
    """The answer in the form that the client accepts."""
    ending = json.dumps(usage.model_dump(), separators=(",", ":")).encode()
    if _accepts_ndjson(http):
        return StreamingResponse(_in_chunks(chain(items, [ending])), media_type=NDJSON)
    body = b'{"object":"list","data":[%b],%b' % (b",".join(items), ending[1:])
    return Response(body, media_type="application/json")


def _accepts_ndjson(http: Request) -> bool:
    accepted = ",".join(http.headers.getlist("accept")).split(",")
    return NDJSON in (media.partition(";")[0].strip().lower() for media in accepted)


def _in_chunks(lines: Iterable[bytes]) -> Iterator[bytes]:
    # Single scores are short: a chunk for each would cost more than the score.
    lines = iter(lines)
    while chunk := list(islice(lines, 64)):
        yield b"".join(line + b"\n" for line in chunk)
