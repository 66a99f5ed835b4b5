"""Comparing: pairs, a ranking, a matrix; of texts, and of vectors without a model; as one JSON and as lines."""

import json
from typing import Any

import numpy as np
import pytest

from tests.installation import TINY, Installation

A = ["a parcel", "a refund", "an invoice"]
B = ["where is my parcel", "money back"]
VECTORS_A = [[3.0, 4.0], [1, 0]]
VECTORS_B = [[0.5, 0.0], [-2.0, 0.0], [0.0, 1.0]]
NDJSON = {"Accept": "application/x-ndjson"}


def _compare(shared: Installation, **fields: Any) -> Any:
    answer = shared.request("POST", "/v1/similarity", json=fields)
    assert answer.status_code == 200, answer.text
    return answer.json()


def _refusal(shared: Installation, **fields: Any) -> tuple[int, str, str | None, str]:
    answer = shared.request("POST", "/v1/similarity", json=fields)
    error = answer.json()["error"]
    return answer.status_code, error["code"], error["param"], error["message"]


def _embedded(shared: Installation, texts: list[str]) -> np.ndarray:
    answer = shared.openai.embeddings.create(model=TINY, input=texts)
    return np.array([item.embedding for item in answer.data])


def test_a_matrix_has_a_row_for_each_of_a_and_a_score_for_each_of_b(shared: Installation) -> None:
    answer = _compare(shared, model=TINY, a=A, b=B)
    assert answer["model"] == TINY
    assert [row["index"] for row in answer["data"]] == [0, 1, 2]
    expected = _embedded(shared, A) @ _embedded(shared, B).T
    np.testing.assert_allclose([row["scores"] for row in answer["data"]], expected, atol=1e-6)
    assert (
        answer["usage"]["total_tokens"] == shared.openai.embeddings.create(model=TINY, input=A + B).usage.total_tokens
    )


def test_dot_and_cosine_agree_for_texts(shared: Installation) -> None:
    for form in ({"a": A, "b": B}, {"query": A[0], "documents": B}, {"pairs": [A[:2], B]}):
        cosine, dot = (_compare(shared, model=TINY, metric=metric, **form) for metric in ("cosine", "dot"))
        assert cosine == dot


def test_vectors_are_compared_without_a_model(shared: Installation) -> None:
    cosine = _compare(shared, a=VECTORS_A, b=VECTORS_B)
    assert (cosine["model"], cosine["usage"]["total_tokens"]) == (None, 0)
    assert [row["scores"] for row in cosine["data"]] == [pytest.approx([0.6, -0.6, 0.8]), pytest.approx([1, -1, 0])]
    dot = _compare(shared, a=VECTORS_A, b=VECTORS_B, metric="dot")
    assert [row["scores"] for row in dot["data"]] == [[1.5, -6.0, 4.0], [0.5, -2.0, 0.0]]


def test_pairs_and_rankings_of_vectors_need_no_model_either(shared: Installation) -> None:
    pairs = _compare(shared, pairs=[[[3.0, 4.0], [6.0, 8.0]], [[1.0, 0.0], [0.0, 2.0]]])
    assert [(item["index"], item["score"]) for item in pairs["data"]] == [(0, pytest.approx(1)), (1, 0)]
    ranked = _compare(shared, query=[1.0, 0.0], documents=VECTORS_B, metric="dot", top_k=2)
    assert [(item["index"], item["score"]) for item in ranked["data"]] == [(0, 0.5), (2, 0.0)]


def test_equal_scores_keep_the_order_of_the_documents(shared: Installation) -> None:
    ranked = _compare(shared, query=[1.0, 0.0], documents=[[0.0, 1.0], [2.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    assert [item["index"] for item in ranked["data"]] == [1, 2, 0, 3]


def test_a_zero_vector_has_a_dot_product_but_no_cosine(shared: Installation) -> None:
    fields = {"a": [[0.0, 0.0]], "b": [[1.0, 1.0]]}
    assert _compare(shared, metric="dot", **fields)["data"] == [{"index": 0, "scores": [0.0]}]
    assert _refusal(shared, **fields)[:3] == (400, "zero_vector", "a.0")


@pytest.mark.parametrize(
    ("fields", "code", "param", "words"),
    [
        ({"a": ["text"], "b": ["text"]}, "missing_parameter", "model", "`a.0` is a text"),
        ({"query": [1.0], "documents": ["text"]}, "missing_parameter", "model", "`documents.0` is a text"),
        ({"a": [[1.0, 2.0]], "b": [[1.0, 2.0], [1.0]]}, "dimension_mismatch", "b.1", "`a.0` 2"),
        ({"a": [[1e200]], "b": [[1e200]], "metric": "dot"}, "out_of_range", "metric", "Scale the vectors"),
        ({"a": [[1e200, -1e200]], "b": [[1e200, 1e200]], "metric": "dot"}, "out_of_range", "metric", "Scale"),
        ({"a": [[1.0]], "b": [[1.0]], "metric": "euclidean"}, "invalid_value", "metric", "'cosine'"),
        ({"a": [[1.0]]}, "invalid_value", None, "'a' with 'b'"),
        ({"a": [[1.0]], "b": [[1.0]], "query": [1.0]}, "invalid_value", None, "'a' with 'b'"),
        ({"a": [[1.0]], "b": [[1.0]], "top_k": 1}, "invalid_value", None, "'a' with 'b'"),
        ({"a": [[1.0]] * 2048, "b": [[1.0]] * 513}, "too_many_inputs", "b", "at most 2044 of a at a time"),
        ({"a": [[1.0]] * 2049, "b": [[1.0]]}, "too_many_inputs", "a", "2048"),
    ],
)  # fmt: skip
def test_what_can_not_be_compared_is_refused(
    shared: Installation, fields: Any, code: str, param: str | None, words: str
) -> None:
    status, *told, message = _refusal(shared, **fields)
    assert (status, told) == (400, [code, param])
    assert words in message


def test_the_largest_matrix_there_may_be_fits_an_answer(shared: Installation) -> None:
    rows, columns = [[float(n), 1.0] for n in range(2048)], [[1.0, float(n)] for n in range(512)]
    answer = _compare(shared, a=rows, b=columns, metric="dot")
    expected = np.arange(2048)[:, None] + np.arange(512)
    np.testing.assert_array_equal([row["scores"] for row in answer["data"]], expected)


@pytest.mark.parametrize(
    "form",
    [
        {"model": TINY, "pairs": [[a, b] for a in A for b in B]},
        {"model": TINY, "query": A[0], "documents": [f"text {n}" for n in range(200)]},
        {"model": TINY, "a": A, "b": B},
        {"a": [[float(n), 1.0] for n in range(150)], "b": VECTORS_B, "metric": "dot"},
    ],
    ids=["pairs", "ranking", "matrix", "vectors"],
)
def test_lines_of_json_hold_what_one_json_holds(shared: Installation, form: Any) -> None:
    answer = shared.request("POST", "/v1/similarity", json=form, headers=NDJSON)
    assert answer.headers["content-type"] == "application/x-ndjson"
    *items, last = map(json.loads, answer.text.splitlines())
    whole = _compare(shared, **form)
    assert items == whole["data"]
    assert last == {name: whole[name] for name in ("model", "model_version", "usage")}


def test_only_who_asks_for_lines_gets_them(shared: Installation) -> None:
    form = {"a": VECTORS_A, "b": VECTORS_B}
    for accept in ("*/*", "application/json", "application/*", "text/html, */*;q=0.8"):
        answer = shared.request("POST", "/v1/similarity", json=form, headers={"Accept": accept})
        assert answer.headers["content-type"] == "application/json", accept
    answer = shared.request(
        "POST", "/v1/similarity", json=form, headers={"Accept": "text/csv, Application/X-NDJSON;q=1"}
    )
    assert answer.headers["content-type"] == "application/x-ndjson"
    refused = shared.request("POST", "/v1/similarity", json={"a": ["x"], "b": ["x"]}, headers=NDJSON)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "missing_parameter")
