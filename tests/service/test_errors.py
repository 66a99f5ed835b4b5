"""Every refusal in one shape, with a code, the field, and what to do."""

import json

import pytest

from api_schemas.errors import ERROR_CODES, ErrorBody
from tests.service.edge_server import ask, connect, create_app, post, read_answer, serving


@pytest.fixture(scope="module")
def port():
    with serving() as port:
        yield port


def _job(**fields):
    return {"model": "m", "training_file": "file-1", **fields}


def _hyper(**fields):
    return _job(method={"type": "contrastive", "contrastive": {"hyperparameters": fields}})


HYPER = "method.contrastive.hyperparameters"

WRONG_JOBS = [
    pytest.param(
        {"model": "m"}, "missing_parameter", "training_file", "`training_file` is required",
        id="missing",
    ),
    pytest.param(
        _job(team_id="t"), "read_only_parameter", "team_id", "set by the service",
        id="row 6: team_id",
    ),
    pytest.param(_job(status="x"), "read_only_parameter", "status", "set by the service", id="row 6: status"),
    pytest.param(_job(id="x"), "read_only_parameter", "id", "set by the service", id="row 6: id"),
    pytest.param(_job(created_at=1), "read_only_parameter", "created_at", "set by", id="row 6: created_at"),
    pytest.param(
        _job(gpu_seconds=1), "read_only_parameter", "gpu_seconds", "set by",
        id="row 6: gpu_seconds",
    ),
    pytest.param(
        _hyper(learnign_rate=0.1),
        "unknown_parameter", f"{HYPER}.learnign_rate", "did you mean `learning_rate`?", id="row 7: typo",
    ),
    pytest.param(
        _hyper(zzz=1), "unknown_parameter", f"{HYPER}.zzz", "the known ones are batch_size",
        id="row 7: nothing near"
    ),
    pytest.param(
        _hyper(status="x"), "unknown_parameter", f"{HYPER}.status", "no field",
        id="read-only on top only",
    ),
    pytest.param(_hyper(batch_size=0), "out_of_range", f"{HYPER}.batch_size", "at least 2", id="row 11: 0"),
    pytest.param(_hyper(batch_size=-1), "out_of_range", f"{HYPER}.batch_size", "at least 2", id="row 11: -1"),
    pytest.param(
        _hyper(batch_size="7"), "invalid_type", f"{HYPER}.batch_size", "an integer, not a string",
        id="row 11: quoted"
    ),
    pytest.param(
        _hyper(batch_size=7.5),
        "invalid_type", f"{HYPER}.batch_size", "an integer, not a decimal number", id="a fraction",
    ),
    pytest.param(
        _hyper(batch_size=True), "invalid_type", f"{HYPER}.batch_size", "an integer, not a boolean",
        id="a boolean"
    ),
    pytest.param(
        _hyper(symmetric=1), "invalid_type", f"{HYPER}.symmetric", "true or false",
        id="1 is not true",
    ),
    pytest.param(
        _hyper(n_epochs="seven"), "invalid_value", f"{HYPER}.n_epochs", "an integer or 'auto'.",
        id="union: text"
    ),
    pytest.param(
        _hyper(n_epochs=0), "out_of_range", f"{HYPER}.n_epochs", "at least 1 or 'auto'.", id="union: bound"
    ),
    pytest.param(
        _hyper(n_epochs=[]), "invalid_type", f"{HYPER}.n_epochs", "an integer or 'auto', not an array",
        id="union: type"
    ),
    pytest.param(
        _hyper(learning_rate=2.5), "out_of_range", f"{HYPER}.learning_rate", "at most 1", id="nullable union"
    ),
    pytest.param(
        _job(method={"type": "contrastive", "contrastive": {"loss": {"name": "triplet"}}}),
        "invalid_value", "method.contrastive.loss.name", "'ntxent' or 'supcon'", id="literal",
    ),
    pytest.param(
        _job(method={"type": "supervised"}), "invalid_value", "method.type", "'contrastive' or 'other'",
        id="tag"
    ),
    pytest.param(_job(method={}), "missing_parameter", "method.type", "required", id="no tag"),
    pytest.param(_job(method=3), "invalid_type", "method", "an object, not an integer", id="no object"),
    pytest.param(
        _job(method={"type": "contrastive", "contrastive": {"columns": ["a"] * 4}}),
        "out_of_range", "method.contrastive.columns", "at most 3 items", id="too many items",
    ),
    pytest.param(
        {"model": "m", "trainingfile": "f"}, "unknown_parameter", "trainingfile", "did you mean `training_file`?",
        id="row 7: a misspelt field is also a missing one",
    ),
    pytest.param(_job(suffix="A B"), "invalid_value", "suffix", "matches", id="pattern"),
    pytest.param(
        _job(suffix="a\r\nb"), "invalid_character", "suffix", "matches",
        id="row 25: CR LF in a suffix",
    ),
    pytest.param(_job(suffix="a" * 19), "out_of_range", "suffix", "at most 18 characters", id="too long"),
    pytest.param(_job(metadata={"a": 1}), "invalid_type", "metadata.a", "a string", id="metadata value"),
    pytest.param([], "invalid_type", None, "The body must be an object, not an array", id="an array as body"),
    pytest.param(None, "invalid_type", None, "an object, not null", id="null as body"),
    pytest.param(
        {"training_file": 1, "seed": "x"},
        "missing_parameter", "model", "has 2 more problems", id="several problems",
    ),
    pytest.param(
        _hyper(n_epochs="x", batch_size=0), "invalid_value", f"{HYPER}.n_epochs", "has 1 more problem.",
        id="a union is one"
    ),
]  # fmt: skip


@pytest.mark.parametrize(("body", "code", "param", "words"), WRONG_JOBS)
def test_a_wrong_job_is_refused_in_one_sentence(port, body, code, param, words):
    answer = post(port, "/v1/jobs", json.dumps(body).encode())
    assert (answer.status, answer.code, answer.param) == (400, code, param)
    assert words in answer.message


@pytest.mark.parametrize(
    ("value", "code", "param"),
    [
        pytest.param(["a", 3], "invalid_type", "input.1", id="the branch that nearly fits"),
        pytest.param(3, "invalid_type", "input", id="no branch fits"),
        pytest.param([1, 2], "token_input_unsupported", "input", id="our own code is kept"),
        pytest.param([{}] * 2000, "invalid_type", "input.0", id="thousands of errors"),
    ],
)
def test_a_wrong_input_is_refused_where_it_is_wrong(port, value, code, param):
    answer = post(port, "/v1/embeddings", {"input": value})
    assert (answer.code, answer.param) == (code, param)


@pytest.mark.parametrize(
    ("query", "code", "words"),
    [("limit=0", "out_of_range", "at least 1"), ("limit=1000000000", "out_of_range", "at most 100"),
     ("limit=x", "invalid_type", "an integer")],
)  # fmt: skip
def test_a_wrong_query_is_refused(port, query, code, words):
    answer = ask(port, "GET", f"/v1/jobs?{query}")
    assert (answer.status, answer.code, answer.param) == (400, code, "limit")
    assert words in answer.message


def test_a_hostile_field_name_is_shown_harmlessly(port):
    answer = post(port, "/v1/jobs", _job(**{"<script>\r\n\u202e" + "x" * 5000: 1}))
    assert answer.code == "unknown_parameter"
    assert answer.param.isprintable()
    assert len(answer.message) < 1000


# Everything that is no validation error


def test_an_unknown_url(port):
    answer = ask(port, "GET", "/nowhere")
    assert (answer.status, answer.code) == (404, "not_found")


@pytest.mark.parametrize("path", ["/V1/jobs", "//v1/jobs", "/v1/%2e%2e/jobs", "/v1/jobs/../jobs"])
def test_path_tricks_lead_nowhere(port, path):
    assert ask(port, "GET", path).status == 404


def test_a_method_that_a_url_lacks_names_those_it_has(port):
    answer = ask(port, "DELETE", "/v1/jobs", headers={"X-HTTP-Method-Override": "GET"})
    assert (answer.status, answer.code) == (405, "method_not_allowed")
    assert answer.headers["allow"] == "GET, POST"


def test_our_own_error_keeps_param_and_headers(port):
    answer = ask(port, "GET", "/v1/refused")
    assert (answer.status, answer.code, answer.param) == (409, "job_already_ended", "job")
    assert answer.headers["x-why"] == "ended"
    assert answer.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("path", ["/v1/database", "/v1/queue"])
def test_a_backend_that_is_away_is_503_with_retry_after(port, path):
    answer = ask(port, "GET", path)
    assert (answer.status, answer.code) == (503, "service_unavailable")
    assert int(answer.headers["retry-after"]) > 0
    _assert_discreet(answer)


def test_a_defect_is_500_and_tells_nothing(port):
    answer = post(port, "/v1/fail", None)
    assert (answer.status, answer.code) == (500, "internal_error")
    assert answer.json["request_id"] == answer.headers["x-request-id"]
    _assert_discreet(answer)


def test_a_defect_after_the_status_cuts_the_answer_short(port):
    with connect(port) as connection:
        connection.sendall(b"GET /v1/fail-late HTTP/1.1\r\nHost: x\r\n\r\n")
        received = b"".join(iter(lambda: connection.recv(65536), b""))
    assert b"first" in received
    assert not received.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize(("method", "path"), [("GET", "/nowhere"), ("PUT", "/v1/jobs"), ("POST", "/v1/fail")])
def test_every_body_has_the_whole_shape(port, method, path):
    answer = ask(port, method, path)
    body = ErrorBody.model_validate(answer.json, strict=True)
    assert answer.headers["content-type"] == "application/json"
    assert (body.status, body.detail) == (answer.status, body.error.message)
    assert body.title == ERROR_CODES[body.error.code].meaning
    assert body.request_id == answer.headers["x-request-id"]


def test_no_cross_origin_header_is_given_to_a_foreign_origin(port):
    answer = ask(port, "GET", "/v1/jobs", headers={"Origin": "https://evil.example"})
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_openapi_declares_our_body_and_no_422():
    document = create_app().openapi()
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    assert operations
    for operation in operations:
        assert {"4XX", "5XX"} <= set(operation["responses"])
        assert "422" not in operation["responses"]
    assert "HTTPValidationError" not in json.dumps(document)


def test_a_client_that_leaves_mid_body_is_no_defect(port):
    with connect(port) as connection:
        connection.sendall(
            b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"
        )
    with connect(port) as connection:
        connection.sendall(b"GET /v1/jobs HTTP/1.1\r\nHost: x\r\n\r\n")
        assert read_answer(connection).status == 200


def _assert_discreet(answer):
    for secret in (b"SELECT", b"/etc", b"Traceback", b".py", b"10.0.0.1", b"sk-1"):
        assert secret not in answer.body
