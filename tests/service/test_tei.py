"""The routes of text-embeddings-inference: what its clients send, and what they get."""

from typing import Any

import numpy as np
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError

from service.settings import ServiceSettings
from tests.installation import TINY, Installation, running_installation

TEXTS = ["a parcel", "where is my parcel", "a refund"]
LONG = "word " * 1000


def _post(shared: Installation, path: str, **fields: Any) -> Any:
    answer = shared.request("POST", path, json=fields)
    assert answer.status_code == 200, answer.text
    return answer.json()


def _embedded(shared: Installation, texts: list[str], model: str = TINY, **options: Any) -> np.ndarray:
    answer = shared.openai.embeddings.create(model=model, input=texts, **options)
    return np.array([item.embedding for item in answer.data], dtype=np.float32)


@pytest.fixture(scope="module")
def tuned(shared: Installation, pairs_file: str) -> str:
    """A tuned model, whose vectors differ from the base model's."""
    job = shared.train(shared.create_job(pairs_file))
    return job.fine_tuned_model


# Embedding


@pytest.mark.parametrize("path", ["/embed", "/", f"/tei/{TINY}/embed", f"/tei/{TINY}", "/tei/tiny%2Fbert/embed"])
def test_texts_are_embedded_as_v1_embeds_them(shared: Installation, path: str) -> None:
    np.testing.assert_allclose(_post(shared, path, inputs=TEXTS), _embedded(shared, TEXTS), atol=1e-6)
    np.testing.assert_allclose(_post(shared, path, inputs=TEXTS[0]), _embedded(shared, TEXTS[:1]), atol=1e-6)


def test_a_tuned_model_is_served_below_its_name(shared: Installation, tuned: str) -> None:
    vectors = _post(shared, f"/tei/{tuned}/embed", inputs=TEXTS)
    np.testing.assert_allclose(vectors, _embedded(shared, TEXTS, tuned), atol=1e-6)
    assert not np.allclose(vectors, _embedded(shared, TEXTS), atol=1e-4)
    assert shared.request("GET", f"/tei/{tuned}/info").json()["model_id"] == tuned


def test_dimensions_cut_and_normalise_again(shared: Installation) -> None:
    vectors = _post(shared, "/embed", inputs=TEXTS, dimensions=8)
    np.testing.assert_allclose(vectors, _embedded(shared, TEXTS, dimensions=8), atol=1e-6)


def test_vectors_have_length_1_whether_or_not_that_is_asked_for(shared: Installation) -> None:
    for normalize in (True, False):
        vectors = _post(shared, "/embed", inputs=TEXTS, normalize=normalize)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_a_long_text_is_cut_unless_that_is_forbidden(shared: Installation) -> None:
    expected = _embedded(shared, ["a", LONG])
    for options in ({}, {"truncate": None}, {"truncate": True}, {"truncate": True, "truncation_direction": "right"}):
        np.testing.assert_allclose(_post(shared, "/embed", inputs=["a", LONG], **options), expected, atol=1e-6)
    answer = shared.request("POST", "/embed", json={"inputs": ["a", LONG], "truncate": False})
    told = answer.json()
    assert (answer.status_code, told["error_type"], told["code"], told["param"]) == (
        422, "Validation", "input_too_long", "inputs.1",
    )  # fmt: skip
    assert "48 tokens" in told["error"]
    assert _post(shared, "/embed", inputs=["a", "b"], truncate=False)


def test_texts_are_not_cut_at_their_beginning(shared: Installation) -> None:
    answer = shared.request("POST", "/embed", json={"inputs": LONG, "truncation_direction": "Left"})
    assert (answer.status_code, answer.json()["param"]) == (422, "truncation_direction")
    assert _post(shared, "/embed", inputs="short", truncation_direction="Left")


# Comparing, tokens, the model


@pytest.mark.parametrize("path", ["/similarity", f"/tei/{TINY}/similarity"])
def test_sentences_are_compared_with_the_source_sentence(shared: Installation, path: str) -> None:
    inputs = {"source_sentence": TEXTS[0], "sentences": [*TEXTS[1:], TEXTS[0]]}
    scores = _post(shared, path, inputs=inputs, parameters={"truncate": True})
    vectors = _embedded(shared, [*TEXTS[1:], TEXTS[0]])
    assert scores == pytest.approx(vectors @ vectors[-1], abs=1e-5)
    assert scores[-1] == pytest.approx(1)


def test_tokens_say_what_bytes_of_the_text_they_stand_for(shared: Installation) -> None:
    text = "the wörd a"
    first, *tokens, last = _post(shared, "/tokenize", inputs=text)[0]
    assert (first["special"], first["start"], first["stop"], last["special"]) == (True, None, None, True)
    for token in tokens:
        assert text.encode()[token["start"] : token["stop"]].decode() == token["text"]
        assert not token["special"]
    assert tokens[-1]["stop"] == len(text.encode())
    bare = _post(shared, "/tokenize", inputs=[text, "a"], add_special_tokens=False)
    assert bare[0] == tokens
    assert len(bare) == 2


def test_tokens_are_told_beyond_what_the_model_reads(shared: Installation) -> None:
    assert len(_post(shared, "/tokenize", inputs=LONG)[0]) == 1000 + 2


def test_more_text_than_is_tokenized_at_a_time_is_refused(shared: Installation) -> None:
    answer = shared.request("POST", "/tokenize", json={"inputs": ["a" * 50_000, "b" * 50_001]})
    assert (answer.status_code, answer.json()["code"], answer.json()["param"]) == (422, "input_too_long", "inputs")


def test_info_tells_the_model_and_its_limits(shared: Installation) -> None:
    info = shared.request("GET", "/info").json()
    assert (info["model_id"], info["model_dtype"], info["max_input_length"]) == (TINY, "float32", 48)
    assert info["model_type"] == {"embedding": {"pooling": "mean"}}
    assert (info["max_client_batch_size"], info["max_batch_tokens"]) == (2048, shared.settings.tokens_per_batch)
    assert info == shared.request("GET", f"/tei/{TINY}/info").json()


def test_health_is_open_and_empty_while_texts_get_embedded(shared: Installation) -> None:
    answer = shared.request("GET", "/health", headers={"Authorization": ""})
    assert (answer.status_code, answer.content) == (200, b"")
    assert shared.request("GET", f"/tei/{TINY}/health").status_code == 200
    assert shared.request("GET", f"/tei/{TINY}/health", headers={"Authorization": ""}).status_code == 401
    assert shared.request("GET", "/tei/no/such/health").status_code == 404


def test_health_says_no_once_the_process_is_asked_to_stop(settings: ServiceSettings) -> None:
    with running_installation(settings.model_copy(update={"unready_seconds": 60})) as api:
        api.service.drain.begin()
        answer = api.request("GET", "/health")
    assert (answer.status_code, answer.json()["error_type"]) == (503, "Unhealthy")


# Errors


@pytest.mark.parametrize(
    ("path", "body", "status", "kind", "code", "param"),
    [
        ("/embed", {"inputs": []}, 400, "Empty", "empty_input", "inputs"),
        ("/embed", {"inputs": ["a", ""]}, 400, "Empty", "empty_input", "inputs"),
        ("/embed", {"inputs": ["a"] * 2049}, 422, "Validation", "too_many_inputs", "inputs"),
        ("/embed", {"inputs": [[1, 2], [3]]}, 422, "Validation", "token_input_unsupported", "inputs"),
        ("/embed", {"inputs": "a", "dimensions": 33}, 422, "Validation", "out_of_range", "dimensions"),
        ("/embed", {"inputs": "a", "prompt_name": "code"}, 422, "Validation", "invalid_value", "prompt_name"),
        ("/embed", {"inputs": "a", "truncat": True}, 422, "Validation", "unknown_parameter", "truncat"),
        ("/embed", {}, 422, "Validation", "missing_parameter", "inputs"),
        ("/similarity", {"inputs": {"source_sentence": "a", "sentences": []}}, 400, "Empty", "empty_input",
         "inputs.sentences"),
        ("/tokenize", {"inputs": "a", "prompt_name": "code"}, 422, "Validation", "invalid_value", "prompt_name"),
        ("/tei/no/such/embed", {"inputs": "a"}, 404, "Validation", "model_not_found", "model"),
        ("/tei/adapter/embed", {"inputs": "a"}, 422, "Validation", "wrong_input", "model"),
        ("/tei/scratch/embed", {"inputs": "a"}, 422, "Validation", "invalid_value", "model"),
    ],
)  # fmt: skip
def test_what_is_refused_is_told_in_teis_shape(
    shared: Installation, path: str, body: Any, status: int, kind: str, code: str, param: str
) -> None:
    answer = shared.request("POST", path, json=body)
    told = answer.json()
    assert (answer.status_code, told["error_type"], told["code"], told["param"]) == (status, kind, code, param)
    assert isinstance(told["error"], str)
    assert told["request_id"] == answer.headers["x-request-id"]


def test_what_is_no_json_is_refused_in_teis_shape(shared: Installation) -> None:
    answer = shared.request("POST", "/embed", content=b"{", headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["error_type"], answer.json()["code"]) == (
        422, "Validation", "invalid_json",
    )  # fmt: skip


@pytest.mark.parametrize("path", ["/embed", "/", "/similarity", "/tokenize", f"/tei/{TINY}/embed", f"/tei/{TINY}"])
def test_a_key_is_needed(shared: Installation, path: str) -> None:
    answer = shared.request("POST", path, json={"inputs": "a"}, headers={"Authorization": ""})
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")


def test_a_tuned_model_is_its_teams_alone(shared: Installation, tuned: str) -> None:
    stranger = shared.as_second_team()
    for path in ("embed", "similarity", "tokenize"):
        assert stranger.request("POST", f"/tei/{tuned}/{path}", json={"inputs": "a"}).status_code == 404


def test_the_routes_are_where_the_models_are(settings: ServiceSettings) -> None:
    with running_installation(settings.model_copy(update={"role": "api"})) as api:
        assert api.request("GET", "/health").status_code == 404
        assert api.request("POST", "/embed", json={"inputs": "a"}).status_code == 404


# Hugging Face's own client


def test_hugging_faces_client_works_with_nothing_but_an_address(shared: Installation, tuned: str) -> None:
    for url, model in ((shared.url, TINY), (f"{shared.url}/tei/{tuned}", tuned)):
        client = InferenceClient(url, token=shared.key)
        vectors = client.feature_extraction(TEXTS, normalize=True, truncate=True)  # type: ignore[arg-type]
        np.testing.assert_allclose(vectors, _embedded(shared, TEXTS, model), atol=1e-6)


def test_hugging_faces_client_compares_sentences(shared: Installation) -> None:
    client = InferenceClient(f"{shared.url}/similarity", token=shared.key)
    scores = client.sentence_similarity(TEXTS[0], other_sentences=TEXTS)
    vectors = _embedded(shared, TEXTS)
    assert scores == pytest.approx(vectors @ vectors[0], abs=1e-5)


def test_hugging_faces_client_tells_what_was_wrong(shared: Installation) -> None:
    client = InferenceClient(f"{shared.url}/tei/{TINY}", token=shared.key)
    with pytest.raises(HfHubHTTPError, match="has more than the 48 tokens"):
        client.feature_extraction(LONG, truncate=False)
