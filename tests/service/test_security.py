"""What strangers and other teams get to see, which is nothing, and what hostile uploads come to, which is data."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import openai
import pytest

from service.app import create_app
from service.settings import ServiceSettings
from storage import teams
from tests.installation import PAIRS, TINY, Installation, running_installation
from tests.processes import until
from tests.service.forms import form, no_file_beyond, stored
from tests.service.statements import statements_of_requests

CONTENT = json.dumps(PAIRS[0]).encode()


@pytest.fixture(scope="module")
def schema(shared: Installation) -> dict[str, Any]:
    return shared.request("GET", "/openapi.json").json()


# Keys


def _without_ids(answer: Any) -> tuple[int, Any]:
    """Status and body without what is different in every answer."""
    text = answer.text.replace(answer.headers["x-request-id"], "")
    return answer.status_code, text


def test_every_way_to_have_no_valid_key_is_one_answer(shared: Installation) -> None:
    with shared.database.session(teams.DEFAULT_TEAM) as session:
        row, revoked = teams.create_key(session, "revoked")
        teams.revoke_key(session, row.id)
    unknown = _never_issued_key(shared)
    altered = _with_wrong_checksum(shared.key)
    sent = ["", "Bearer", f"Basic {shared.key}", shared.key, "Bearer sk-x", f"Bearer {altered}",
            f"Bearer {unknown}", f"Bearer {revoked}", f"Bearer {shared.key}x", f"Bearer {'k' * 8000}"]  # fmt: skip
    answers = [shared.request("GET", "/v1/models", headers={"Authorization": value}) for value in sent]
    in_query = shared.request("GET", f"/v1/models?api_key={shared.key}", headers={"Authorization": ""})
    assert {_without_ids(answer) for answer in [*answers, in_query]} == {_without_ids(in_query)}
    assert (in_query.status_code, in_query.json()["error"]["code"]) == (401, "invalid_api_key")
    assert in_query.headers["www-authenticate"] == "Bearer"


def test_a_key_that_fails_its_checksum_costs_no_query(shared: Installation) -> None:
    wrong = _with_wrong_checksum(shared.key)
    with statements_of_requests() as statements:
        refused = shared.request("GET", "/v1/models", headers={"Authorization": f"Bearer {wrong}"})
        assert (refused.status_code, statements) == (401, [])
        assert shared.request("GET", "/v1/models").status_code == 200
    assert statements  # so the counter counts


def test_a_revoked_key_stops_working_within_moments(shared: Installation) -> None:
    with shared.database.session(teams.DEFAULT_TEAM) as session:
        row, key = teams.create_key(session, "short-lived")
    holder = replace(shared, key=key)
    assert holder.request("GET", "/v1/models").status_code == 200
    with shared.database.session(teams.DEFAULT_TEAM) as session:
        teams.revoke_key(session, row.id)
    until(lambda: holder.request("GET", "/v1/models").status_code == 401)


def _with_wrong_checksum(key: str) -> str:
    return f"{key[:-1]}{'0' if key[-1] != '0' else '1'}"


def _never_issued_key(installation: Installation) -> str:
    """A key with a sound checksum that is in no table."""
    with installation.database.session(teams.DEFAULT_TEAM) as session:
        row, key = teams.create_key(session, "never mind")
        session.delete(row)
    return key


# Routes


def _operations(schema: dict[str, Any]) -> list[tuple[str, str]]:
    return [(method.upper(), path) for path, methods in schema["paths"].items() for method in methods]


def _filled(path: str, **ids: str) -> str:
    return re.sub(r"{(\w+)}", lambda match: ids.get(match[1], f"{match[1]}-0"), path)


#: All others want a key.
OPEN = {"/healthz", "/readyz", "/health"}


def test_every_route_but_those_for_health_wants_a_key(shared: Installation, schema: dict[str, Any]) -> None:
    protected = [(method, path) for method, path in _operations(schema) if path not in OPEN]
    assert len(protected) > 25
    unknown = [("GET", "/v1/nothing"), ("PATCH", "/v1/files"), ("GET", "/v1"), ("GET", "/tei"), ("GET", "/embed")]
    for method, path in [*protected, *unknown]:
        answer = shared.request(method, _filled(path), headers={"Authorization": ""})
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key"), (method, path)


def test_every_protected_route_says_so_in_openapi(schema: dict[str, Any]) -> None:
    for method, path in _operations(schema):
        secured = "security" in schema["paths"][path][method.lower()]
        assert secured == (path not in OPEN), (method, path)


def test_every_route_is_in_openapi_and_none_declares_422(settings: ServiceSettings) -> None:
    app = create_app(settings)
    declared = app.openapi()
    documentation = {"/openapi.json", "/docs", "/docs/oauth2-redirect", "/static-offline-docs/{path}"}
    served = {getattr(route, "path_format", None) or getattr(route, "path", None) for route in _leaves(app.routes)}
    assert served - documentation == set(declared["paths"])
    assert not [place for place in _operations(declared) if "422" in _responses(declared, *place)]
    assert not [place for place in _operations(declared) if not {"4XX", "5XX"} <= _responses(declared, *place).keys()]


def _leaves(routes: Any) -> Iterator[Any]:
    for route in routes:
        inner = getattr(route, "effective_route_contexts", None)
        yield from [route] if inner is None else (context for context in inner())


def _responses(schema: dict[str, Any], method: str, path: str) -> dict[str, Any]:
    return schema["paths"][path][method.lower()]["responses"]


# Other teams


def test_what_another_team_has_is_to_nobody_elses_knowledge(shared: Installation, schema: dict[str, Any]) -> None:
    file_id = shared.upload(PAIRS)
    job = shared.create_job(file_id)
    model = shared.publish(job)
    upload_id = shared.openai.uploads.create(bytes=1, filename="a", mime_type="a", purpose="fine-tune").id
    alias = shared.request("PUT", "/v1/aliases/theirs", json={"model": TINY}).json()["name"]
    theirs = {"file_id": file_id, "upload_id": upload_id, "job_id": job.id, "model": model, "name": alias}
    nobodys = {
        "file_id": f"file-{'0' * 24}",
        "upload_id": f"upload-{'0' * 24}",
        "job_id": f"ftjob-{'0' * 24}",
        "model": f"{model.rpartition(':')[0]}:{'0' * 12}",
        "name": "nobodys",
    }
    stranger = shared.as_second_team()
    asked = 0
    for method, path in _operations(schema):
        if "{" not in path or method == "PUT":  # which makes what it names, for each team its own
            continue
        asked += 1
        answers = [
            _told_without(stranger.request(method, _filled(path, **ids)), *ids.values()) for ids in (theirs, nobodys)
        ]
        assert answers[0] == answers[1], (method, path)
        assert answers[0][0] == 404, (method, path)
    assert asked >= 10
    assert shared.openai.models.retrieve(model).id == model


def test_what_another_team_has_can_not_be_named_in_a_body(shared: Installation) -> None:
    file_id = shared.upload(PAIRS)
    job = shared.create_job(file_id)
    model = shared.publish(job)
    alias = shared.request("PUT", "/v1/aliases/theirs", json={"model": model}).json()["name"]
    stranger = shared.as_second_team()
    own_file = stranger.upload(PAIRS)
    bodies = [
        ("/v1/fine_tuning/jobs", {"model": TINY, "training_file": file_id}, "training_file"),
        ("/v1/fine_tuning/jobs", {"model": TINY, "training_file": own_file, "validation_file": file_id},
         "validation_file"),
        ("/v1/fine_tuning/jobs", {"model": model, "training_file": own_file}, "model"),
        ("/v1/embeddings", {"model": model, "input": "a"}, "model"),
        ("/v1/similarity", {"model": model, "pairs": [["a", "b"]]}, "model"),
        ("/v1/similarity", {"model": model, "a": ["a"], "b": ["b"]}, "model"),
        ("/v1/embeddings", {"model": alias, "input": "a"}, "model"),
        ("/v1/fine_tuning/jobs", {"model": alias, "training_file": own_file}, "model"),
    ]  # fmt: skip
    for path, body, param in bodies:
        nobodys = {**body, param: "nobody-0"}
        answers = [
            _told_without(stranger.request("POST", path, json=sent), str(sent[param])) for sent in (body, nobodys)
        ]
        assert answers[0] == answers[1]
        assert (answers[0][0], json.loads(answers[0][1])["error"]["param"]) == (404, param)


def test_another_teams_part_can_not_be_made_part_of_a_file(shared: Installation) -> None:
    stranger = shared.as_second_team()
    uploads = [
        installation.openai.uploads.create(bytes=1, filename="a", mime_type="a", purpose="fine-tune").id
        for installation in (shared, stranger)
    ]
    part_id = shared.openai.uploads.parts.create(uploads[0], data=b"a").id
    answers = [
        _told_without(
            stranger.request("POST", f"/v1/uploads/{upload_id}/complete", json={"part_ids": [name]}), upload_id, name
        )
        for name in (part_id, f"part-{'0' * 24}")
        for upload_id in (uploads[1], uploads[0], f"upload-{'0' * 24}")
    ]
    assert answers[:3] == answers[3:]
    assert answers[1] == answers[2]
    assert {status for status, _ in answers} == {404}
    assert json.loads(answers[0][1])["error"]["param"] == "part_ids.0"
    answer = stranger.request("POST", f"/v1/uploads/{uploads[0]}/parts", content=form(('name="data"', b"a")))
    assert answer.status_code == 404
    assert shared.openai.uploads.complete(uploads[0], part_ids=[part_id]).status == "completed"


def test_lists_and_cursors_are_a_teams_own(shared: Installation) -> None:
    file_id = shared.upload(PAIRS)
    job = shared.create_job(file_id)
    model = shared.publish(job)
    stranger = shared.as_second_team().openai
    own = shared.as_second_team().upload(PAIRS)
    assert own in [file.id for file in stranger.files.list()]
    assert file_id not in [file.id for file in stranger.files.list()]
    assert job.id not in [listed.id for listed in stranger.fine_tuning.jobs.list()]
    assert model not in [listed.id for listed in stranger.models.list()]
    shared.request("PUT", "/v1/aliases/theirs", json={"model": model})
    assert shared.as_second_team().request("GET", "/v1/aliases").json()["data"] == []
    for page in (lambda: stranger.files.list(after=file_id), lambda: stranger.fine_tuning.jobs.list(after=job.id)):
        with pytest.raises(openai.BadRequestError) as refusal:
            page()
        assert refusal.value.code == "invalid_cursor"


def _told_without(answer: Any, *ids: str) -> tuple[int, str]:
    text = answer.text.replace(answer.headers["x-request-id"], "")
    for name in ids:
        text = text.replace(name, "")
    return answer.status_code, text


@pytest.mark.parametrize("path", ["/V1/models", "//v1/models", "/v1/models/../../etc/passwd", "/v1/%2e%2e/healthz"])
def test_odd_spellings_of_a_path_lead_nowhere(shared: Installation, path: str) -> None:
    for headers in ({}, {"Authorization": ""}):
        assert shared.request("GET", path, headers=headers).status_code in (401, 404)


def test_a_method_is_what_the_request_line_says(shared: Installation) -> None:
    file_id = shared.upload(PAIRS)
    answer = shared.request("GET", f"/v1/files/{file_id}", headers={"X-HTTP-Method-Override": "DELETE"})
    assert answer.status_code == 200
    assert shared.openai.files.retrieve(file_id).id == file_id
    assert shared.request("TRACE", "/v1/files").status_code == 405
    assert shared.request("PUT", "/v1/files").headers["allow"] == "GET, POST"


def test_a_foreign_origin_gets_no_cors_header(shared: Installation) -> None:
    answer = shared.request("GET", "/v1/models", headers={"Origin": "https://elsewhere.example"})
    assert not [name for name in answer.headers if name.startswith("access-control-")]


# Uploads


PURPOSE = ('name="purpose"', b"fine-tune")
FILE = ('name="file"; filename="rows.jsonl"', CONTENT)


def _post_form(installation: Installation, body: bytes, media: str = "multipart/form-data; boundary=b") -> Any:
    return installation.request("POST", "/v1/files", content=body, headers={"Content-Type": media})


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "..\\..\\boot.ini",
        "%252e%252e%252fpasswd",
        "/etc/passwd",
        "a" * 4096,
        "-rf",
        "<script>alert(1)</script>",
        "Müller's \u05d0 \U0001f600.jsonl",
        "a;b=c.jsonl",
    ],
)
def test_a_file_name_is_data_and_no_path(shared: Installation, name: str) -> None:
    files_before = set(stored(shared, "files"))
    answer = _post_form(shared, form(PURPOSE, (f'name="file"; filename="{name}"', CONTENT)))
    assert answer.status_code == 200, answer.text
    file = answer.json()
    assert set(stored(shared, "files")) - files_before == {file["id"]}
    content = shared.request("GET", f"/v1/files/{file['id']}/content")
    assert content.content == CONTENT
    assert content.headers["content-disposition"].startswith("attachment; filename")
    assert content.headers["content-type"] == "application/octet-stream"


@pytest.mark.parametrize(
    ("disposition", "code"),
    [
        pytest.param('filename="a\u202ekcab.jsonl"', "invalid_character", id="right-to-left override"),
        pytest.param('filename="a\0b"', "invalid_character", id="NUL"),
        pytest.param("filename*=utf-8''a%0d%0ab", "invalid_character", id="CR LF, encoded"),
        pytest.param("filename*=utf-8''a%00b", "invalid_character", id="NUL, encoded"),
        pytest.param("filename*=undefined''a", "invalid_multipart", id="a codec that refuses everything"),
        pytest.param("filename*=idna''a", "invalid_multipart", id="a codec that is none for texts"),
    ],
)
def test_a_file_name_with_tricks_is_refused(shared: Installation, disposition: str, code: str) -> None:
    before = stored(shared)
    answer = _post_form(shared, form(PURPOSE, (f'name="file"; {disposition}', CONTENT)))
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)
    assert stored(shared) == before


BAD_FORMS = [
    pytest.param(form(PURPOSE, *[('name="x"', b"")] * 100, FILE), "too_many_parts", None, id="100 parts"),
    pytest.param(form(PURPOSE, FILE, FILE), "too_many_parts", "file", id="two files"),
    pytest.param(form(FILE), "missing_parameter", "purpose", id="no purpose"),
    pytest.param(form(('name="purpose"', b"batch"), FILE), "invalid_value", "purpose", id="another purpose"),
    pytest.param(form(PURPOSE), "missing_parameter", "file", id="no file"),
    pytest.param(form(PURPOSE, ("filename=a", b"x")), "invalid_multipart", None, id="a part without a name"),
    pytest.param(form(PURPOSE, FILE, ('name="colour"', b"red")), "unknown_parameter", "colour", id="unknown field"),
    pytest.param(
        form(('name="purpose"', b"x" * 10_000), FILE), "input_too_long", "purpose", id="a field of 10 000 bytes"
    ),
    pytest.param(form(('name="purpose"', b"\xff"), FILE), "invalid_unicode", None, id="a field that is not UTF-8"),
    pytest.param(form(PURPOSE, FILE)[:-4], "invalid_multipart", None, id="no closing boundary"),
    pytest.param(b"", "invalid_multipart", None, id="nothing"),
    pytest.param(b"no form at all", "invalid_multipart", None, id="no form"),
    pytest.param(
        form(PURPOSE, ('name="expires_after[anchor]"', b"created_at"), FILE), "invalid_value", "expires_after",
        id="an expiry",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("body", "code", "param"), BAD_FORMS)
def test_a_bad_form_leaves_nothing_behind(shared: Installation, body: bytes, code: str, param: str | None) -> None:
    before = stored(shared)
    answer = _post_form(shared, body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, code, param)
    assert stored(shared) == before


@pytest.mark.parametrize(
    ("media", "status", "code"),
    [
        pytest.param("multipart/form-data", 400, "invalid_multipart", id="no boundary"),
        pytest.param("multipart/form-data; boundary=", 400, "invalid_multipart", id="an empty boundary"),
        pytest.param("multipart/form-data; boundary=other", 400, "invalid_multipart", id="another boundary"),
        pytest.param("application/json", 415, "unsupported_media_type", id="JSON"),
        pytest.param("multipart/mixed; boundary=b", 415, "unsupported_media_type", id="another multipart"),
    ],
)
def test_a_form_under_a_wrong_content_type_is_refused(shared: Installation, media: str, status: int, code: str) -> None:
    answer = _post_form(shared, form(PURPOSE, FILE), media)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


def test_a_compressed_upload_is_refused(shared: Installation) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=b", "Content-Encoding": "gzip"}
    answer = shared.request("POST", "/v1/files", content=form(PURPOSE, FILE), headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_encoding")


@pytest.mark.parametrize("chunked", [False, True])
def test_an_upload_larger_than_allowed_is_refused(settings: ServiceSettings, chunked: bool) -> None:
    body = form(PURPOSE, ('name="file"; filename="a"', b"x" * 200_000))
    with running_installation(settings.model_copy(update={"max_upload_bytes": 100_000})) as installation:
        answer = _post_form(installation, iter([body]) if chunked else body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")
        assert stored(installation) == []
        assert list(installation.openai.files.list()) == []


def test_an_upload_that_the_disk_has_no_room_for_leaves_nothing_behind(installation: Installation) -> None:
    body = form(PURPOSE, ('name="file"; filename="a"', b"x" * 3_000_000))
    with no_file_beyond(1_000_000):
        answer = _post_form(installation, body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "storage_full")
    assert answer.headers["retry-after"]
    assert list(installation.openai.files.list()) == []
    assert stored(installation) == []
    assert _post_form(installation, body).status_code == 200


@pytest.mark.parametrize("size", [0, 1, 1_000_000])
def test_a_full_disk_is_told_wherever_the_write_fails(installation: Installation, size: int) -> None:
    with no_file_beyond(size):
        answer = _post_form(installation, form(PURPOSE, ('name="file"; filename="a"', b"x" * (size + 1))))
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "storage_full")
    assert stored(installation) == []


# Downloads


RANGES = [
    pytest.param("bytes=0-9", 206, CONTENT[:10], id="the beginning"),
    pytest.param("bytes=10-", 206, CONTENT[10:], id="from somewhere on"),
    pytest.param("bytes=10-5", 200, CONTENT, id="backwards"),
    pytest.param("bytes=99999999-", 200, CONTENT, id="behind the end"),
    pytest.param("bytes=" + ",".join(["0-0"] * 10_000), 200, CONTENT, id="10 000 parts"),
    pytest.param("lines=1-2", 200, CONTENT, id="an unknown unit"),
    pytest.param(f"bytes={'9' * 5000}-", 200, CONTENT, id="a number of 5000 digits"),
]


@pytest.mark.parametrize(("wanted", "status", "content"), RANGES)
def test_one_range_is_served_and_odd_ones_get_the_whole(
    shared: Installation, wanted: str, status: int, content: bytes
) -> None:
    file_id = shared.upload(CONTENT)
    answer = shared.request("GET", f"/v1/files/{file_id}/content", headers={"Range": wanted})
    assert (answer.status_code, answer.content) == (status, content)


# Stored bytes that are not what they were


def test_a_model_altered_after_publication_is_not_served(shared: Installation, pairs_file: str) -> None:
    job = shared.create_job(pairs_file)
    model = shared.publish(job)
    weights = shared.settings.artifacts_dir / "models" / f"{job.id}-1" / "model.safetensors"
    sound = weights.read_bytes()
    weights.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    with pytest.raises(openai.InternalServerError) as refusal:
        shared.openai.embeddings.create(model=model, input="a")
    assert (refusal.value.status_code, refusal.value.code) == (503, "artifact_corrupt")
    assert "model.safetensors" in refusal.value.message
    weights.write_bytes(sound)
    assert shared.openai.embeddings.create(model=model, input="a").model == model


def test_a_model_with_a_file_more_or_less_is_not_served(shared: Installation, pairs_file: str) -> None:
    for change in (lambda folder: (folder / "evil.py").touch(), lambda folder: (folder / "manifest.json").unlink()):
        job = shared.create_job(pairs_file)
        model = shared.publish(job)
        change(shared.settings.artifacts_dir / "models" / f"{job.id}-1")
        answer = shared.request("POST", "/v1/embeddings", json={"model": model, "input": "a"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "artifact_corrupt")


@pytest.mark.parametrize("left", [None, CONTENT[:-1]])
def test_a_file_cut_short_or_gone_is_not_served(shared: Installation, left: bytes | None) -> None:
    file_id = shared.upload(CONTENT)
    stored = shared.settings.artifacts_dir / "files" / file_id
    stored.unlink()
    if left is not None:
        stored.write_bytes(left)
    answer = shared.request("GET", f"/v1/files/{file_id}/content")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "artifact_corrupt")


def test_no_answer_names_a_path_or_a_statement(shared: Installation, pairs_file: str) -> None:
    job = shared.create_job(pairs_file)
    model = shared.publish(job)
    (shared.settings.artifacts_dir / "models" / f"{job.id}-1" / "manifest.json").write_text("[")
    answers = [
        shared.request("POST", "/v1/embeddings", json={"model": model, "input": "a"}),
        shared.request("POST", "/v1/embeddings", content=b"{", headers={"Content-Type": "application/json"}),
        shared.request("GET", "/v1/files/%27%20OR%201=1"),
    ]
    for answer in answers:
        assert answer.status_code >= 400
        assert not re.search(r"SELECT|Traceback|\.py|/tmp/|psycopg", answer.text)
        assert str(shared.settings.data_dir) not in answer.text
