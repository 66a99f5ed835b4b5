"""Requests that are wrong: one status, one code and one field for each, in one shape."""

import json
from typing import Any

import pytest

from api_schemas.errors import ERROR_CODES, ErrorBody
from tests.installation import TINY, Installation

LOSS = "method.contrastive.loss"
HYPERPARAMETERS = "method.contrastive.hyperparameters"
JOBS = "/v1/fine_tuning/jobs"


class Raw(str):
    """A number as it is to stand in the JSON, whatever Python thinks of it."""

    __slots__ = ()


def _dump(value: Any) -> bytes:
    """JSON, with each Raw as it is."""
    text = json.dumps(value, default=str)
    for raw in _raws(value):
        text = text.replace(json.dumps(str(raw)), str(raw))
    return text.encode()


def _raws(value: Any) -> list[Raw]:
    if isinstance(value, Raw):
        return [value]
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [raw for item in inside for raw in _raws(item)]


def _loss(**loss: Any) -> dict[str, Any]:
    return {"method": {"type": "contrastive", "contrastive": {"loss": loss}}}


def _hyper(**hyperparameters: Any) -> dict[str, Any]:
    return {"method": {"type": "contrastive", "contrastive": {"hyperparameters": hyperparameters}}}


# fields of a job beside model and training_file; status; code; param; words of the message
WRONG_JOBS = [
    pytest.param(_loss(temperature=0), 400, "out_of_range", f"{LOSS}.temperature", "greater than 0", id="0"),
    pytest.param(_loss(temperature=-1), 400, "out_of_range", f"{LOSS}.temperature", "greater than 0", id="negative"),
    pytest.param(_loss(temperature=11), 400, "out_of_range", f"{LOSS}.temperature", "at most 10", id="too hot"),
    pytest.param(
        _loss(temperature=Raw("NaN")), 400, "not_finite", f"{LOSS}.temperature", "must be finite", id="NaN"
    ),
    pytest.param(
        _loss(temperature=Raw("1e999")), 400, "not_finite", f"{LOSS}.temperature", "must be finite", id="1e999"
    ),
    pytest.param(
        _loss(temperature="hot"), 400, "invalid_value", f"{LOSS}.temperature",
        "a number or 'learnable', 'auto' or 'search'",
        id="a word",
    ),
    pytest.param(
        _loss(temperature=None), 400, "invalid_type", f"{LOSS}.temperature",
        "a number or 'learnable', 'auto' or 'search'",
        id="null",
    ),
    pytest.param(
        _loss(name="triplet"), 400, "invalid_value", f"{LOSS}.name", "'ntxent', 'supcon' or 'search'", id="triplet"
    ),
    pytest.param(_loss(reduction="sum"), 400, "invalid_value", f"{LOSS}.reduction", "'class' or 'auto'", id="sum"),
    pytest.param(_loss(symmetric="yes"), 400, "invalid_type", f"{LOSS}.symmetric", "true or false", id="yes"),
    pytest.param(_loss(memory_size=-1), 400, "out_of_range", f"{LOSS}.memory_size", "at least 0", id="memory -1"),
    pytest.param(
        _loss(memory_size=64, symmetric=True), 400, "invalid_value", f"{LOSS}.memory_size", "0 with symmetric",
        id="a memory that would have to ask",
    ),
    pytest.param(_hyper(batch_size=1), 400, "out_of_range", f"{HYPERPARAMETERS}.batch_size", "at least 2", id="bs 1"),
    pytest.param(
        _hyper(batch_size="8"), 400, "invalid_value", f"{HYPERPARAMETERS}.batch_size", "an integer", id="quoted"
    ),
    pytest.param(
        _hyper(learning_rate=0), 400, "out_of_range", f"{HYPERPARAMETERS}.learning_rate", "greater than 0", id="lr 0"
    ),
    pytest.param(
        _hyper(learnign_rate=1e-4), 400, "unknown_parameter", f"{HYPERPARAMETERS}.learnign_rate",
        "did you mean `learning_rate`?", id="a typo",
    ),
    pytest.param(_hyper(warmup_ratio=1), 400, "out_of_range", f"{HYPERPARAMETERS}.warmup_ratio", "less than 1", id="1"),
    pytest.param(
        _hyper(max_steps=Raw("9" * 4000)), 400, "out_of_range", f"{HYPERPARAMETERS}.max_steps", "Integers",
        id="an integer of 4000 digits",
    ),
    pytest.param(
        _hyper(n_epochs=Raw(str(2**70))), 400, "out_of_range", f"{HYPERPARAMETERS}.n_epochs", "Integers", id="2^70"
    ),
    pytest.param(
        {"hyperparameters": {"n_epochs": 0}}, 400, "out_of_range", "hyperparameters.n_epochs", "at least 1",
        id="OpenAI's n_epochs 0",
    ),
    pytest.param({"method": {"type": "dpo"}}, 400, "invalid_value", "method.type", "'contrastive'", id="dpo"),
    pytest.param({"model": "no/such"}, 404, "model_not_found", "model", "GET /v1/models", id="no such model"),
    pytest.param({"model": "../x"}, 404, "model_not_found", "model", "no model", id="a model that climbs"),
    pytest.param({"model": "/etc"}, 404, "model_not_found", "model", "no model", id="a model that is a path"),
    pytest.param({"model": "https://host/x"}, 404, "model_not_found", "model", "no model", id="a model that is a URL"),
    pytest.param({"model": "ft:x:y:z"}, 404, "model_not_found", "model", "no model", id="a tuned model nobody has"),
    pytest.param({"model": 7}, 400, "invalid_type", "model", "a string", id="a number as a model"),
    pytest.param({"training_file": "file-0"}, 404, "not_found", "training_file", "no file", id="no such file"),
    pytest.param({"training_file": "../../x"}, 404, "not_found", "training_file", "no file", id="a file that climbs"),
    pytest.param({"validation_file": "file-0"}, 404, "not_found", "validation_file", "no file", id="no validation"),
    pytest.param({"integrations": [{"type": "wandb"}]}, 400, "out_of_range", "integrations", "at most 0", id="wandb"),
    pytest.param({"suffix": "a b"}, 400, "invalid_value", "suffix", "A-Za-z0-9", id="a space in the suffix"),
    pytest.param({"suffix": "a/b"}, 400, "invalid_value", "suffix", "A-Za-z0-9", id="a slash in the suffix"),
    pytest.param({"suffix": "a\r\nb"}, 400, "invalid_character", "suffix", "U+000D", id="CR LF in the suffix"),
    pytest.param({"suffix": "a\n"}, 400, "invalid_character", "suffix", "U+000A", id="LF ends the suffix"),
    pytest.param({"suffix": ""}, 400, "out_of_range", "suffix", "at least 1 characters", id="an empty suffix"),
    pytest.param({"suffix": "a" * 65}, 400, "out_of_range", "suffix", "at most 64 characters", id="a long suffix"),
    pytest.param({"seed": -1}, 400, "out_of_range", "seed", "at least 0", id="a negative seed"),
    pytest.param({"seed": True}, 400, "invalid_type", "seed", "an integer", id="true as a seed"),
    pytest.param(
        {"metadata": {str(n): "" for n in range(17)}}, 400, "out_of_range", "metadata", "at most 16", id="17 names"
    ),
    pytest.param({"metadata": {"k": "v" * 513}}, 400, "out_of_range", "metadata.k", "at most 512", id="long metadata"),
    pytest.param(
        {"metadata": {"k" * 65: "v"}}, 400, "out_of_range", f"metadata.{'k' * 65}", "at most 64", id="a long name"
    ),
    pytest.param({"metadata": {"k": 1}}, 400, "invalid_type", "metadata.k", "a string", id="a number in metadata"),
    pytest.param({"metadata": {"k": "\0"}}, 400, "invalid_unicode", "metadata.k", "NUL", id="NUL in metadata"),
    *[
        pytest.param({name: 1}, 400, "read_only_parameter", name, "set by the service", id=f"read-only {name}")
        for name in ("id", "status", "created_at", "team_id", "organization_id", "trained_tokens", "fine_tuned_model")
    ],
]  # fmt: skip


@pytest.mark.parametrize(("fields", "status", "code", "param", "words"), WRONG_JOBS)
def test_a_wrong_job_is_refused_and_not_made(
    shared: Installation, pairs_file: str, fields: Any, status: int, code: str, param: str | None, words: str
) -> None:
    before = shared.openai.fine_tuning.jobs.list().data
    body = {"model": TINY, "training_file": pairs_file, **fields}
    _assert_refused(shared, "POST", JOBS, body, status, code, param, words)
    assert shared.openai.fine_tuning.jobs.list().data == before


WRONG_EMBEDDINGS = [
    pytest.param({"input": []}, "empty_input", "input", "at least one text", id="no texts"),
    pytest.param({"input": ""}, "empty_input", "input", "empty string", id="an empty text"),
    pytest.param({"input": ["a", ""]}, "empty_input", "input", "input.1", id="an empty text among others"),
    pytest.param({"input": ["a"] * 2049}, "too_many_inputs", "input", "2048", id="2049 texts"),
    pytest.param({"input": [1, 2]}, "token_input_unsupported", "input", "send the texts", id="tokens"),
    pytest.param({"input": [[1], [2]]}, "token_input_unsupported", "input", "send the texts", id="token arrays"),
    pytest.param({"input": "a" * 1_000_001}, "input_too_long", "input", "1000000", id="a text too long"),
    pytest.param({"input": ["a", None]}, "invalid_type", "input", "input.1 must be a string", id="null among texts"),
    pytest.param({"input": 7}, "invalid_type", "input", "a string or a list of strings", id="a number"),
    pytest.param({"input": "\ud800"}, "invalid_unicode", "input", "surrogate", id="half of a surrogate pair"),
    pytest.param({"input": "a", "dimensions": 0}, "out_of_range", "dimensions", "at least 1", id="no dimensions"),
    pytest.param({"input": "a", "dimensions": 33}, "out_of_range", "dimensions", "at most 32", id="33 of 32"),
    pytest.param({"input": "a", "dimensions": 1.5}, "invalid_type", "dimensions", "an integer", id="1.5 dimensions"),
    pytest.param({"input": "a", "encoding_format": "int8"}, "invalid_value", "encoding_format", "'float'", id="int8"),
    pytest.param({}, "missing_parameter", "input", "required", id="no input"),
]


@pytest.mark.parametrize(("fields", "code", "param", "words"), WRONG_EMBEDDINGS)
def test_a_wrong_embedding_request_is_refused(
    shared: Installation, fields: Any, code: str, param: str, words: str
) -> None:
    _assert_refused(shared, "POST", "/v1/embeddings", {"model": TINY, **fields}, 400, code, param, words)


ONE_FORM = "send either 'pairs', or 'query' with 'documents'"
WRONG_COMPARISONS = [
    pytest.param({}, "invalid_value", None, ONE_FORM, id="nothing"),
    pytest.param({"query": "a"}, "invalid_value", None, ONE_FORM, id="no documents"),
    pytest.param({"pairs": [["a", "b"]], "query": "c"}, "invalid_value", None, ONE_FORM, id="both forms"),
    pytest.param(
        {"query": "a", "documents": ["b"], "input_type": "query"}, "invalid_value", None, "is for 'pairs'", id="a role"
    ),
    pytest.param({"pairs": [["a", "b"]], "input_type": "code"}, "invalid_value", "input_type", "query", id="no prompt"),
    pytest.param({"pairs": [["a"]]}, "out_of_range", "pairs.0", "at least 2", id="half a pair"),
    pytest.param({"pairs": [["a", ""]]}, "empty_input", "pairs.0.1", "empty string", id="an empty text"),
    pytest.param({"pairs": [["a", "b"]] * 1025}, "out_of_range", "pairs", "at most 1024", id="too many pairs"),
    pytest.param({"query": "a", "documents": []}, "empty_input", "documents", "empty list", id="an empty list"),
    pytest.param({"query": "a", "documents": ["b"], "top_k": 0}, "out_of_range", "top_k", "at least 1", id="top 0"),
    pytest.param(
        {"query": "a", "documents": ["b"], "top_k": 10**9}, "out_of_range", "top_k", "at most 2048", id="top 10^9"
    ),
]


@pytest.mark.parametrize(("fields", "code", "param", "words"), WRONG_COMPARISONS)
def test_a_wrong_comparison_is_refused(
    shared: Installation, fields: Any, code: str, param: str | None, words: str
) -> None:
    _assert_refused(shared, "POST", "/v1/similarity", {"model": TINY, **fields}, 400, code, param, words)


@pytest.mark.parametrize("path", ["/v1/files", JOBS])
@pytest.mark.parametrize(
    ("query", "code", "param", "words"),
    [
        pytest.param("limit=0", "out_of_range", "limit", "at least 1", id="limit 0"),
        pytest.param("limit=1000000000", "out_of_range", "limit", "at most 1000", id="limit 10^9"),
        pytest.param("limit=many", "invalid_type", "limit", "an integer", id="a word as a limit"),
        pytest.param("after=nothing", "invalid_cursor", "after", "nothing in this list", id="an unknown cursor"),
        pytest.param(f"after={'x' * 201}", "out_of_range", "after", "at most 200", id="a long cursor"),
        pytest.param("after=%00", "invalid_unicode", None, "NUL", id="NUL as a cursor"),
    ],
)
def test_a_wrong_page_is_refused(
    shared: Installation, path: str, query: str, code: str, param: str | None, words: str
) -> None:
    _assert_refused(shared, "GET", f"{path}?{query}", None, 400, code, param, words)


@pytest.mark.parametrize("after", ["nothing", "ftevent-0-1", "ftevent-", "ftjob-0", "1"])
def test_a_wrong_cursor_into_events_is_refused(shared: Installation, pairs_file: str, after: str) -> None:
    job = shared.create_job(pairs_file)
    shared.openai.fine_tuning.jobs.cancel(job.id)
    path = f"{JOBS}/{job.id}/events?after={after}"
    _assert_refused(shared, "GET", path, None, 400, "invalid_cursor", "after", "no event of this job")


def test_a_deleted_file_is_as_good_as_none(shared: Installation) -> None:
    file_id = shared.upload(b"{}")
    shared.openai.files.delete(file_id)
    body = {"model": TINY, "training_file": file_id}
    _assert_refused(shared, "POST", JOBS, body, 404, "not_found", "training_file", "no file")
    _assert_refused(shared, "GET", f"/v1/files/{file_id}/content", None, 404, "not_found", None, "no file")


def _assert_refused(
    installation: Installation, method: str, path: str, body: Any, status: int, code: str, param: str | None, words: str
) -> None:
    content = {} if body is None else {"content": _dump(body), "headers": {"Content-Type": "application/json"}}
    answer = installation.request(method, path, **content)
    told = ErrorBody.model_validate(answer.json())
    assert (answer.status_code, told.error.code, told.error.param) == (status, code, param), told
    assert words in told.error.message
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert (told.status, told.title, told.detail) == (status, ERROR_CODES[code].meaning, told.error.message)
    assert told.error.type == ERROR_CODES[code].type
    assert answer.headers["x-request-id"] == told.request_id
    assert answer.headers["content-type"] == "application/json"


JSON = {"Content-Type": "application/json"}
WRONG_BYTES = [
    pytest.param(b"{", JSON, 400, "invalid_json", "is not JSON", id="broken JSON"),
    pytest.param(b"[" * 300 + b"]" * 300, JSON, 400, "json_too_deep", "32 levels", id="300 levels"),
    pytest.param(b'{"model": "a", "model": "b"}', JSON, 400, "duplicate_key", "twice", id="a key twice"),
    pytest.param('{"model": "a"}'.encode("utf-16"), JSON, 400, "invalid_unicode", "UTF-8", id="UTF-16"),
    pytest.param(b"[]", JSON, 400, "invalid_type", "an object", id="an array"),
    pytest.param(b"", JSON, 400, "missing_parameter", "JSON body", id="nothing"),
    pytest.param(b"{}", {"Content-Type": "text/plain"}, 415, "unsupported_media_type", "JSON", id="text/plain"),
    pytest.param(b"{}", JSON | {"Content-Encoding": "gzip"}, 415, "unsupported_encoding", "uncompressed", id="gzip"),
    pytest.param(b" " * 10_500_000, JSON, 413, "request_too_large", "larger than", id="more than 10 MiB"),
]


@pytest.mark.parametrize("path", [JOBS, "/v1/uploads", "/v1/embeddings", "/v1/similarity"])
@pytest.mark.parametrize(("content", "headers", "status", "code", "words"), WRONG_BYTES)
def test_what_is_no_sound_json_is_refused_by_every_route(
    shared: Installation, path: str, content: bytes, headers: dict[str, str], status: int, code: str, words: str
) -> None:
    answer = shared.request("POST", path, content=content, headers=headers)
    told = ErrorBody.model_validate(answer.json())
    assert (answer.status_code, told.error.code) == (status, code)
    assert words in told.error.message


def test_a_request_id_is_kept_if_it_is_harmless_and_else_replaced(shared: Installation) -> None:
    for sent, kept in (("my-id_1.2", True), ("a b", False), ("<script>", False), ("x" * 129, False)):
        answer = shared.request("GET", "/v1/files/file-0", headers={"X-Request-Id": sent})
        assert (answer.headers["x-request-id"] == sent) is kept
        assert answer.json()["request_id"] == answer.headers["x-request-id"]
