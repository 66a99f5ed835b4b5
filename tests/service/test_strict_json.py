"""What the strict reader takes and refuses, alone and in front of FastAPI's routes."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api_schemas.errors import LikenessError
from service.strict_json import parse_json
from tests.service.edge_server import JSON_LIMIT, Answer, ask, connect, post, read_answer, serving


@pytest.fixture(scope="module")
def port():
    with serving() as port:
        yield port


REFUSED = [
    pytest.param(b"", "invalid_json", None, id="nothing"),
    pytest.param(b'{"a": 1,}', "invalid_json", None, id="trailing comma"),
    pytest.param(b"{'a': 1}", "invalid_json", None, id="single quotes"),
    pytest.param(b"1 2", "invalid_json", None, id="two values"),
    pytest.param(b'"a\nb"', "invalid_json", None, id="bare line break in a string"),
    pytest.param(b'{"a": 1, "b": {"c": 1, "c": 2}}', "duplicate_key", "c", id="row 14: duplicate key"),
    pytest.param(b'{"lr": NaN}', "not_finite", "lr", id="row 12: NaN"),
    pytest.param(b'{"v": [0.1, -Infinity]}', "not_finite", "v.1", id="row 12: Infinity"),
    pytest.param(b"1e999", "not_finite", None, id="row 11: 1e999"),
    pytest.param(b'{"n": %s}' % (b"7" * 4000), "out_of_range", "n", id="row 11: 4000 digits"),
    pytest.param(b"[%s]" % (b"7" * 1_000_000), "out_of_range", None, id="row 11: a million digits"),
    pytest.param(b'{"n": %d}' % 2**70, "out_of_range", "n", id="row 11: 2^70"),
    pytest.param(b'{"n": %d}' % -(2**63 + 1), "out_of_range", "n", id="below 64 bits"),
    pytest.param(b"[" * 33 + b"]" * 33, "json_too_deep", None, id="33 levels"),
    pytest.param(b"[" * 300 + b"]" * 300, "json_too_deep", None, id="row 10: 300 levels"),
    pytest.param(b'{"a":' * 900 + b"1" + b"}" * 900, "json_too_deep", None, id="row 10: 900 objects"),
    pytest.param(b"[" * 100_000 + b"]" * 100_000, "json_too_deep", None, id="row 10: 100 000 levels"),
    pytest.param(b"[" * 100_000, "json_too_deep", None, id="100 000 levels, never closed"),
    pytest.param(b'{"input": ["a", "\\ud800"]}', "invalid_unicode", "input.1", id="row 13: lone surrogate"),
    pytest.param(b'{"\\udfff": 1}', "invalid_unicode", "\ufffd", id="row 13: lone surrogate in a key"),
    pytest.param(b'{"a": {"b": "x\\u0000"}}', "invalid_unicode", "a.b", id="row 13: NUL"),
    pytest.param(b'"\xff"', "invalid_unicode", None, id="row 13: bad UTF-8"),
    pytest.param(b'"\xed\xa0\x80"', "invalid_unicode", None, id="row 13: surrogate in UTF-8"),
    pytest.param('{"a": 1}'.encode("utf-16"), "invalid_unicode", None, id="row 13: UTF-16"),
    pytest.param('{"a": 1}'.encode("utf-16-le"), "invalid_unicode", None, id="row 13: UTF-16 without mark"),
    pytest.param('{"a": 1}'.encode("utf-32"), "invalid_unicode", None, id="UTF-32"),
    pytest.param(b'\xef\xbb\xbf{"a": 1}', "invalid_unicode", None, id="byte order mark"),
]


@pytest.mark.parametrize(("body", "code", "param"), REFUSED)
def test_refuses(body, code, param):
    with pytest.raises(LikenessError) as refusal:
        parse_json(body)
    assert refusal.value.code == code
    if code != "json_too_deep":
        assert refusal.value.param == param


@pytest.mark.parametrize(("body", "code", "param"), REFUSED)
def test_a_route_refuses_the_same_with_the_same_code(port, body, code, param):
    answer = post(port, "/v1/anything", body)
    # An empty body is no body: then the route says that it needs one.
    expected = "missing_parameter" if not body else code
    assert (answer.status, answer.code) == (400, expected)


@pytest.mark.parametrize("depth", [1, 31, 32])
def test_depth_up_to_the_limit_is_read(depth):
    assert parse_json(b"[" * depth + b"]" * depth) is not None


def test_invalid_json_says_where_and_what_to_do():
    with pytest.raises(LikenessError) as refusal:
        parse_json(b'{\n  "a": 1\n  "b": 2\n}')
    assert "line 3, column 3" in refusal.value.message
    assert "send it again" in refusal.value.message


def test_a_hostile_key_is_shortened_and_made_printable():
    with pytest.raises(LikenessError) as refusal:
        parse_json(json.dumps({"\r\n\x1b[31m" + "k" * 10_000: math.nan}).encode())
    assert refusal.value.param.isprintable()
    assert len(refusal.value.param) < 100


def test_a_pair_of_surrogates_is_one_character():
    assert parse_json(b'["\\ud83d\\ude00", "\\\\ud800"]') == ["😀", "\\ud800"]


@given(st.binary())
def test_any_bytes_are_read_or_refused(body):
    _read_or_refuse(body)


@given(st.text(alphabet='[]{}",:0129.eE+-\\udnulNaItrfsi \n\u0000é').map(str.encode))
def test_anything_like_json_is_read_or_refused(body):
    _read_or_refuse(body)


def _read_or_refuse(body: bytes) -> None:
    try:
        value = parse_json(body)
    except LikenessError as refusal:
        assert refusal.message  # noqa: PT017
    else:
        assert json.loads(body) == value


_TEXT = st.text(alphabet=st.characters(exclude_characters="\x00", exclude_categories=["Cs"]))
_NUMBERS = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
_VALUES = st.recursive(
    st.none() | st.booleans() | _NUMBERS | _TEXT,
    lambda inside: st.lists(inside) | st.dictionaries(_TEXT, inside),
    max_leaves=20,
)


@given(_VALUES, st.booleans())
def test_any_value_survives_the_trip(value, ensure_ascii):
    assert parse_json(json.dumps(value, ensure_ascii=ensure_ascii).encode()) == value


# In front of routes


def test_a_plain_route_gets_its_model(port):
    answer = post(port, "/v1/jobs", {"model": "m", "training_file": "file-1"})
    assert answer.status == 200
    assert answer.json["model"] == "m"


def test_a_number_in_quotes_is_no_number(port):
    answer = post(port, "/v1/jobs", {"model": "m", "training_file": "f", "seed": "7"})
    assert (answer.code, answer.param) == ("invalid_type", "seed")


MEDIA = [
    pytest.param({}, "unsupported_media_type", id="row 14: no Content-Type"),
    pytest.param({"content-type": "text/plain"}, "unsupported_media_type", id="row 14: text"),
    pytest.param({"content-type": "application/merge+json"}, "unsupported_media_type", id="other JSON"),
    pytest.param({"content-type": "application/json; charset=utf-16"}, "unsupported_media_type", id="UTF-16"),
    pytest.param(
        {"content-type": "application/json", "content-encoding": "gzip"},
        "unsupported_encoding",
        id="row 9: gzip",
    ),
]


@pytest.mark.parametrize(("headers", "code"), MEDIA)
def test_other_media_are_refused(port, headers, code):
    with connect(port) as connection:
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        connection.sendall(f"POST /v1/jobs HTTP/1.1\r\nHost: x\r\n{lines}Content-Length: 2\r\n\r\n{{}}".encode())
        answer = read_answer(connection)
    assert (answer.status, answer.code) == (415, code)


@pytest.mark.parametrize("media", ["application/json", "Application/JSON; charset=UTF-8"])
def test_json_by_any_spelling_is_accepted(port, media):
    body = {"input": "x"}
    assert ask(port, "POST", "/v1/embeddings", body, {"content-type": media}).status == 200


def test_a_body_that_may_be_missing_may_be_missing(port):
    assert ask(port, "POST", "/v1/optional", headers={"accept": "*/*"}).json == {"sent": False}


def test_a_body_that_must_not_be_missing_is_asked_for(port):
    answer = ask(port, "POST", "/v1/jobs", headers={"accept": "*/*"})
    assert (answer.status, answer.code, answer.param) == (400, "missing_parameter", None)


def test_multipart_is_left_alone(port):
    form = b'--b\r\nContent-Disposition: form-data; name="file"; filename="../x"\r\n\r\nhello\r\n--b--\r\n'
    answer = ask(port, "POST", "/v1/files", form, {"content-type": "multipart/form-data; boundary=b"})
    assert answer.json == {"name": "../x", "bytes": 5}


def test_multipart_without_boundary_is_refused_in_our_shape(port):
    answer = ask(port, "POST", "/v1/files", b"x", {"content-type": "multipart/form-data"})
    assert (answer.status, answer.code) == (400, "invalid_multipart")


def test_a_form_of_3000_fields_has_too_many_parts(port):
    part = b'--b\r\nContent-Disposition: form-data; name="f"\r\n\r\nx\r\n'
    answer = ask(
        port,
        "POST",
        "/v1/files",
        part * 3000 + b"--b--\r\n",
        {"content-type": "multipart/form-data; boundary=b"},
    )
    assert (answer.status, answer.code) == (400, "too_many_parts")


# Size


def test_a_subclass_sets_another_limit(port):
    text = "x" * (JSON_LIMIT + 1)
    assert post(port, "/v1/large", [text]).json == len(text)
    assert post(port, "/v1/anything", [text]).code == "request_too_large"


def test_a_declared_excess_is_refused_before_it_is_sent(port):
    with connect(port) as connection:
        connection.sendall(_json_head(f"Content-Length: {100 * 1024 * 1024}"))
        answer = read_answer(connection)
    _assert_too_large(answer)


def test_a_chunked_excess_is_refused_while_it_comes(port):
    with connect(port) as connection:
        connection.sendall(_json_head("Transfer-Encoding: chunked"))
        connection.sendall(b"%x\r\n%s\r\n" % (JSON_LIMIT + 1, b" " * (JSON_LIMIT + 1)))
        answer = read_answer(connection)  # and the last chunk is never sent
    _assert_too_large(answer)


def test_a_client_that_sends_everything_first_still_reads_the_refusal(port):
    answer = post(port, "/v1/anything", b" " * 30_000_000)
    _assert_too_large(answer)


def test_expecting_continue_saves_the_upload(port):
    with connect(port) as connection:
        connection.sendall(_json_head(f"Expect: 100-continue\r\nContent-Length: {JSON_LIMIT + 1}"))
        answer = read_answer(connection)
    _assert_too_large(answer)


def _json_head(more: str) -> bytes:
    return f"POST /v1/anything HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{more}\r\n\r\n".encode()


def _assert_too_large(answer: Answer) -> None:
    assert (answer.status, answer.code) == (413, "request_too_large")
    assert answer.headers["connection"] == "close"
    assert answer.headers["x-request-id"] == answer.json["request_id"]
