"""Deadlines, limits and refusals on the wire, spoken by raw sockets against a real server.

The servers here have deadlines of a second or less; a test that reads until the server closes fails by its
socket's own timeout if the server never does.
"""

import contextlib
import threading
from typing import ClassVar

import pytest

from service.http_protocol import BodyPace, StrictHTTPProtocol
from tests.service.edge_server import ask, connect, is_closed, read_answer, serving

GET = b"GET /v1/jobs HTTP/1.1\r\nHost: x\r\n\r\n"
SEVEN_CONNECTIONS = 7


class Impatient(StrictHTTPProtocol):
    header_seconds = 0.4
    body_seconds = 0.6
    linger_seconds = 0.6
    write_seconds = 0.5


class Recorded(Impatient):
    """Tells, once all its connections are gone, which of them left a timer."""

    linger_seconds = 0.2
    everyone: ClassVar[list["Recorded"]] = []
    last_gone: ClassVar[threading.Event] = threading.Event()

    def connection_made(self, transport):
        self.everyone.append(self)
        super().connection_made(transport)

    def connection_lost(self, exc):
        super().connection_lost(exc)
        if not self.connections and len(self.everyone) == SEVEN_CONNECTIONS:
            self.last_gone.set()


class Crowded(StrictHTTPProtocol):
    max_connections = 2


@pytest.fixture(scope="module")
def port():
    with serving() as port:
        yield port


@pytest.fixture(scope="module")
def impatient():
    with serving(Impatient) as port:
        yield port


def _request(line: bytes, *headers: bytes, body: bytes = b"") -> bytes:
    return b"\r\n".join([line, b"Host: x", *headers, b"", body])


POST = b"POST /v1/anything HTTP/1.1"
JSON = b"Content-Type: application/json"

MALFORMED = [
    pytest.param(b"hello\r\n\r\n", 400, "bad_request", id="no request line"),
    pytest.param(b"GET / HTTP/1.1\r\n\r\n", 400, "bad_request", id="no Host"),
    pytest.param(_request(b"GET / HTTP/1.1", b"Host: y"), 400, "bad_request", id="two Hosts"),
    pytest.param(_request(b"GET / HTTP/1.1", b"X-A : b"), 400, "bad_request", id="blank before the colon"),
    pytest.param(_request(b"GET / HTTP/1.1", b"X-A: a\x00b"), 400, "bad_request", id="NUL in a header"),
    pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "bad_request", id="TLS to a plain port"),
    pytest.param(b"GET /\x00 HTTP/1.1\r\nHost: x\r\n\r\n", 400, "bad_request", id="row 13: bare NUL in the path"),
    pytest.param(
        _request(POST, JSON, b"Content-Length: 2", b"Content-Length: 3", body=b"{}"),
        400,
        "bad_request",
        id="row 26: two Content-Lengths",
    ),
    pytest.param(
        _request(POST, JSON, b"Content-Length: 2", b"content-length: 2", body=b"{}"),
        400,
        "bad_request",
        id="row 26: two equal Content-Lengths",
    ),
    pytest.param(
        _request(POST, JSON, b"Content-Length: 2, 2", body=b"{}"),
        400,
        "bad_request",
        id="row 26: two Content-Lengths in one line",
    ),
    pytest.param(_request(POST, JSON, b"Content-Length: -1"), 400, "bad_request", id="negative Content-Length"),
    pytest.param(
        _request(POST, JSON, b"Content-Length: 2", b"Transfer-Encoding: chunked", body=b"2\r\n{}\r\n0\r\n\r\n"),
        400,
        "bad_request",
        id="row 26: Content-Length and Transfer-Encoding",
    ),
    pytest.param(
        _request(b"POST /v1/anything HTTP/1.0", JSON, b"Transfer-Encoding: chunked"),
        400,
        "bad_request",
        id="chunks in HTTP/1.0",
    ),
    pytest.param(_request(POST, JSON, b"Transfer-Encoding: gzip"), 400, "bad_request", id="other encoding"),
    pytest.param(
        _request(POST, JSON, b"Transfer-Encoding: chunked", body=b"zz\r\n"),
        400,
        "bad_request",
        id="no chunk length",
    ),
    pytest.param(
        _request(b"GET / HTTP/1.1", b"X-Long: " + b"a" * 70_000),
        431,
        "headers_too_large",
        id="row 8: 70 kB header",
    ),
    pytest.param(
        _request(b"GET / HTTP/1.1", *[b"X-%d: aaaaaaaa" % n for n in range(5000)]),
        431,
        "headers_too_large",
        id="row 8: 5000 headers",
    ),
    pytest.param(_request(b"GET /" + b"a" * 70_000 + b" HTTP/1.1"), 431, "headers_too_large", id="70 kB path"),
    pytest.param(b"GET / HTTP/1.1\r\nX-Long: " + b"a" * 70_000, 431, "headers_too_large", id="no end in sight"),
    pytest.param(_request(b"GET /v1/models/a%00b HTTP/1.1"), 400, "invalid_unicode", id="row 13: %00 in the path"),
    pytest.param(_request(b"GET /v1/jobs?after=%00 HTTP/1.1"), 400, "invalid_unicode", id="%00 in the query"),
    pytest.param(_request(b"GET /v1/models/%ff HTTP/1.1"), 400, "invalid_unicode", id="path that is not UTF-8"),
    pytest.param(
        _request(b"GET /v1/models/a%0d%0aSet-Cookie:x HTTP/1.1"),
        400,
        "invalid_character",
        id="row 25: %0d%0a",
    ),
    pytest.param(_request(b"GET /v1/models/%1b[31m HTTP/1.1"), 400, "invalid_character", id="escape in the path"),
    pytest.param(_request(b"TRACE / HTTP/1.1"), 405, "method_not_allowed", id="row 26: TRACE"),
    pytest.param(_request(b"CONNECT x:80 HTTP/1.1"), 405, "method_not_allowed", id="CONNECT"),
]


@pytest.mark.parametrize(("sent", "status", "code"), MALFORMED)
def test_what_is_no_request_is_refused_and_the_connection_closed(impatient, sent, status, code):
    with connect(impatient) as connection:
        connection.sendall(sent)
        answer = read_answer(connection)
        assert is_closed(connection)
    assert (answer.status, answer.code) == (status, code)
    assert answer.headers["connection"] == "close"
    assert answer.headers["x-request-id"] == answer.json["request_id"]


def test_a_method_never_served_names_those_that_are(port):
    with connect(port) as connection:
        connection.sendall(_request(b"TRACE / HTTP/1.1"))
        assert "GET" in read_answer(connection).headers["allow"]


@pytest.mark.parametrize(
    "path", ["/v1/models/ft%3Abase%3Ateam", "/v1/models/a%2Fb", "/v1/models/a%2500", "/v1/models/%C3%A9"]
)
def test_ordinary_escapes_pass(port, path):
    assert ask(port, "GET", path).status == 200


# Deadlines


SLOW_HEADERS = [
    pytest.param(b"", id="row 18: nothing at all"),
    pytest.param(b"GET / HT", id="row 18: half a request line"),
    pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\nX-A: ", id="row 18: half a header"),
]


@pytest.mark.parametrize("sent", SLOW_HEADERS)
def test_headers_that_do_not_come_end_the_connection(impatient, sent):
    with connect(impatient) as connection:
        connection.sendall(sent)
        answer = read_answer(connection)
        assert is_closed(connection)
    assert (answer.status, answer.code) == (408, "request_timeout")


def test_headers_that_trickle_do_not_push_the_deadline_back(impatient):
    with connect(impatient) as connection:
        answer = _trickle(connection, b"GET / HTTP/1.1\r\nHost: x\r\nX-A: ", b"a")
    assert (answer.status, answer.code) == (408, "request_timeout")


def test_the_next_request_on_a_connection_has_its_own_deadline(impatient):
    with connect(impatient) as connection:
        connection.sendall(GET)
        assert read_answer(connection).status == 200
        connection.sendall(GET[:10])
        assert read_answer(connection).code == "request_timeout"
        assert is_closed(connection)


def test_a_body_that_does_not_come_ends_the_connection(impatient):
    with connect(impatient) as connection:
        connection.sendall(_request(POST, JSON, b"Content-Length: 100", body=b"{"))
        answer = read_answer(connection)
        assert is_closed(connection)
    assert (answer.status, answer.code) == (408, "request_timeout")


def test_a_body_that_trickles_ends_the_connection(impatient):
    with connect(impatient) as connection:
        answer = _trickle(connection, _request(POST, JSON, b"Content-Length: 100000"), b" ")
    assert (answer.status, answer.code) == (408, "request_timeout")


def test_a_chunked_body_without_end_ends_the_connection(impatient):
    with connect(impatient) as connection:
        answer = _trickle(connection, _request(POST, JSON, b"Transfer-Encoding: chunked"), b"1\r\n \r\n")
    assert (answer.status, answer.code) == (408, "request_timeout")


def test_a_long_upload_at_a_fair_pace_is_not_cut(impatient):
    """Three windows long, in pieces that come at the server's own ticks: each half of a window has enough."""
    piece = b"x" * Impatient.body_bytes
    with connect(impatient) as connection:
        connection.sendall(_request(b"POST /v1/raw HTTP/1.1", b"Content-Length: %d" % (12 * len(piece))))
        for _ in range(12):
            connection.sendall(piece)
            _wait(Impatient.body_seconds / 4)
        assert read_answer(connection).json == 12 * len(piece)


def test_a_client_that_waits_to_be_asked_for_the_body_is_asked(impatient):
    with connect(impatient) as connection:
        connection.sendall(_request(POST, JSON, b"Content-Length: 2", b"Expect: 100-continue"))
        assert connection.recv(1000).startswith(b"HTTP/1.1 100")
        connection.sendall(b"{}")
        assert read_answer(connection).json == {"value": {}}


def test_a_client_that_never_reads_is_dropped(impatient):
    with connect(impatient) as connection:
        connection.sendall(_request(b"GET /v1/big-answer HTTP/1.1"))
        # Our receive buffer stays full; that the server hung up shows when we send.
        assert _sending_fails(connection)


def _trickle(connection, start: bytes, drop: bytes):
    """Send `start`, then a drop at a time, until the server answers."""
    connection.sendall(start)
    connection.settimeout(0.05)
    for _ in range(200):
        with contextlib.suppress(OSError):
            connection.sendall(drop)
        with contextlib.suppress(TimeoutError):
            return read_answer(connection)
    raise AssertionError("the server never answered")


def _sending_fails(connection) -> bool:
    connection.settimeout(0.05)
    for _ in range(200):
        try:
            connection.sendall(b" " * 1000)
        except TimeoutError:
            continue
        except OSError:
            return True
        _wait(0.05)
    return False


def _wait(seconds: float) -> None:
    """Let time pass between two pieces: what is tested is the pace itself."""
    threading.Event().wait(seconds)


# Answers before the body has come


def test_an_answer_before_the_body_ends_the_connection_after_it_was_read(impatient):
    with connect(impatient) as connection:
        connection.sendall(_request(b"POST /v1/unread HTTP/1.1", b"Content-Length: 1000000000"))
        answer = read_answer(connection)
        connection.sendall(b"x" * 1_000_000)
        assert is_closed(connection)
    assert answer.json == {"done": True}
    assert answer.headers["connection"] == "close"


def test_a_connection_lives_on_when_the_body_was_there(port):
    with connect(port) as connection:
        for _ in range(3):
            connection.sendall(_request(b"POST /v1/unread HTTP/1.1", b"Content-Length: 2", body=b"{}"))
            answer = read_answer(connection)
            assert answer.json == {"done": True}
            assert "connection" not in answer.headers


def test_pipelined_requests_are_answered_in_order(port):
    one = _request(POST, JSON, b"Content-Length: 1", body=b"1")
    two = _request(POST, JSON, b"Content-Length: 1", body=b"2")
    with connect(port) as connection:
        connection.sendall(one + two)
        assert _values_until(connection, b'{"value":2}') == [b'{"value":1}', b'{"value":2}']


def test_a_length_shorter_than_the_body_makes_the_rest_no_request(impatient):
    with connect(impatient) as connection:
        connection.sendall(_request(POST, JSON, b"Content-Length: 1", body=b"1 is not all\r\n\r\n"))
        received = b"".join(iter(lambda: connection.recv(65536), b""))
    assert received.startswith(b"HTTP/1.1 200")
    assert b"HTTP/1.1 400" in received


def _values_until(connection, last: bytes) -> list[bytes]:
    received = b""
    while last not in received:
        received += connection.recv(65536)
    return [part.split(b"\r\n\r\n")[1] for part in received.split(b"HTTP/1.1 ")[1:]]


# Many connections


def test_a_connection_too_many_is_told_to_come_back():
    with serving(Crowded) as port, connect(port) as first, connect(port) as second:
        for connection in (first, second):
            connection.sendall(GET)
            assert read_answer(connection).status == 200
        with connect(port) as third:
            answer = read_answer(third)
            assert (answer.status, answer.code) == (503, "service_unavailable")
            assert answer.headers["retry-after"]
        first.sendall(GET)
        assert read_answer(first).status == 200


def test_500_slow_clients_do_not_keep_others_waiting(impatient):
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(connect(impatient)) for _ in range(500)]
        for connection in slow:
            with contextlib.suppress(OSError):  # the first ones may be closed by now
                connection.sendall(b"GET / HTTP/1.1\r\nX-A: ")
        assert ask(impatient, "GET", "/v1/jobs").status == 200
        assert all(is_closed(connection) for connection in slow)


def test_no_timer_outlives_its_connection():
    with serving(Recorded) as port, contextlib.ExitStack() as stack:
        opened = [stack.enter_context(connect(port)) for _ in range(SEVEN_CONNECTIONS)]
        idle, answered, malformed, unread, gone, stalled, silent = opened
        answered.sendall(GET)
        assert read_answer(answered).status == 200
        answered.close()
        malformed.sendall(b"hello\r\n\r\n")
        unread.sendall(_request(b"POST /v1/unread HTTP/1.1", b"Content-Length: 1000000"))
        gone.sendall(_request(POST, JSON, b"Content-Length: 10"))
        gone.close()
        stalled.sendall(_request(POST, JSON, b"Content-Length: 10"))
        silent.shutdown(1)
        assert all(is_closed(connection) for connection in (idle, malformed, unread, stalled, silent))
        assert Recorded.last_gone.wait(10)
    assert [protocol._timers for protocol in Recorded.everyone] == [{}] * SEVEN_CONNECTIONS


def test_a_request_cut_off_by_shutdown_is_told_to_come_back():
    with contextlib.ExitStack() as stack:
        with serving() as port:
            connection = stack.enter_context(connect(port))
            connection.sendall(_request(b"GET /v1/for-ever HTTP/1.1"))
            assert ask(port, "GET", "/v1/jobs").status == 200  # so the first request is under way
        answer = read_answer(connection)
    assert (answer.status, answer.code) == (503, "service_unavailable")
    assert answer.headers["retry-after"]


# The pace of a body


def _verdicts(halves: list[int], floor: int = 100) -> list[bool]:
    pace = BodyPace(floor)
    verdicts = []
    for received in halves:
        pace.count(received)
        verdicts.append(pace.is_too_slow(excused=False))
    return verdicts


@pytest.mark.parametrize(
    ("halves", "slow_at"),
    [
        pytest.param([0, 0], 1, id="nothing"),
        pytest.param([50, 49], 1, id="just below the floor"),
        pytest.param([50, 50, 50, 50], None, id="just at the floor"),
        pytest.param([1_000_000, 0, 0], 2, id="a burst does not buy a long pause"),
        pytest.param([0, 100, 0, 100, 0], None, id="in bursts"),
    ],
)
def test_pace(halves, slow_at):
    verdicts = _verdicts(halves)
    assert (verdicts.index(True) if True in verdicts else None) == slow_at


def test_pace_forgives_what_we_did_not_read():
    pace = BodyPace(100)
    assert [pace.is_too_slow(excused=excused) for excused in (False, True, False, False)] == [
        False,
        False,
        False,
        True,
    ]
