"""What Prometheus reads, and what an answer tells of its own time."""

import re

import pytest

from tests.installation import TINY, Installation


def _numbers(installation: Installation) -> dict[str, float]:
    answer = installation.request("GET", "/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    lines = [line for line in answer.text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def _grown(before: dict[str, float], after: dict[str, float], name: str) -> float:
    return after.get(name, 0.0) - before.get(name, 0.0)


def test_requests_and_passes_are_counted_under_the_names_that_dashboards_know(shared: Installation) -> None:
    before = _numbers(shared)
    texts = ["counted once", "counted twice"]
    assert shared.request("POST", "/v1/embeddings", json={"model": TINY, "input": texts}).status_code == 200
    assert shared.request("POST", "/v1/embeddings", json={"model": TINY, "input": texts[0]}).status_code == 200
    wrong = {"model": TINY, "input": "a", "input_type": "no such prompt"}
    assert shared.request("POST", "/v1/embeddings", json=wrong).status_code == 400
    after = _numbers(shared)
    expected = {
        'te_request_count{method="batch"}': 1,
        'te_request_count{method="single"}': 2,
        'te_request_success{method="single"}': 1,
        'te_request_failure{err="validation"}': 1,
        "te_embed_count": 3,
        "te_request_duration_count": 2,
        "te_request_inference_duration_count": 1,
        "te_batch_next_size_count": 1,
        "te_batch_next_size_sum": 2,
        'likeness_vector_cache{found="known"}': 1,
    }
    assert {name: _grown(before, after, name) for name in expected} == expected
    assert after["te_queue_size"] == after["likeness_queue_tokens"] == 0
    assert after[f'likeness_model_bytes{{model="{TINY}"}}'] > 1_000_000


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {"model": TINY, "input": "some text"}),
        ("/v1/similarity", {"model": TINY, "pairs": [["a text", "another"]]}),
        (f"/tei/{TINY}/embed", {"inputs": "some text"}),
    ],
)
def test_an_answer_tells_where_its_time_went(shared: Installation, path: str, body: object) -> None:
    timing = shared.request("POST", path, json=body).headers["server-timing"]
    assert re.fullmatch(r"queue;dur=[\d.]+, tokenize;dur=[\d.]+, forward;dur=[\d.]+", timing)


def test_the_numbers_want_a_key(shared: Installation) -> None:
    assert shared.request("GET", "/metrics", headers={"Authorization": ""}).status_code == 401


def test_how_a_model_is_computed_is_told(shared: Installation) -> None:
    shared.request("POST", "/v1/embeddings", json={"model": TINY, "input": "some text"})
    mode = shared.request("GET", f"/v1/models/{TINY}").json()["mode"]
    assert {mode["single"], mode["several"]} <= {"torch-fp32", "onnxruntime-fp32"}
    assert mode["refused"] == []
