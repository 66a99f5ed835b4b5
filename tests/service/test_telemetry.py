"""Request ids on every answer, one line a request, and nothing in it that does not belong there."""

import io
import json
import logging
import subprocess
import sys

import pytest
import structlog

from service.telemetry import RequestTelemetry, configure_logging, new_request_id
from tests.service.edge_server import ask, connect, post, read_answer


class Service:
    """The small application as a process of its own, and what it logs."""

    def __init__(self, log_path):
        self.log_path = log_path
        self.log = log_path.open("wb")
        command = [sys.executable, "-m", "tests.service.edge_server"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.log)
        self.port = int(self.process.stdout.readline())

    def lines(self):
        """All lines so far: the server has one thread, so once it answers us, earlier lines are out."""
        ask(self.port, "GET", "/v1/jobs")
        return [json.loads(line) for line in self.log_path.read_text().splitlines()]

    def line_of(self, request_id, event="request_finished"):
        found = [line for line in self.lines() if line.get("request_id") == request_id and line["event"] == event]
        assert len(found) == 1
        return found[0]

    def stop(self):
        self.process.terminate()
        self.process.wait(20)
        self.process.stdout.close()
        self.log.close()


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    service = Service(tmp_path_factory.mktemp("telemetry") / "log")
    yield service
    service.stop()


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/jobs", 200),
        ("POST", "/v1/jobs", 400),
        ("GET", "/nowhere", 404),
        ("DELETE", "/v1/jobs", 405),
        ("GET", "/v1/refused", 409),
        ("POST", "/v1/fail", 500),
        ("GET", "/v1/database", 503),
    ],
)
def test_every_answer_has_an_id_and_a_line(service, method, path, status):
    answer = ask(service.port, method, path)
    assert answer.status == status
    line = service.line_of(answer.headers["x-request-id"])
    assert (line["method"], line["status"]) == (method, status)
    assert line["route"] == (None if status == 404 else path)
    assert line["duration_ms"] >= 0


def test_what_never_reaches_the_application_has_an_id_and_a_line(service):
    with connect(service.port) as connection:
        connection.sendall(b"TRACE / HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = read_answer(connection)
    line = service.line_of(answer.headers["x-request-id"], "request_refused")
    assert (line["status"], line["code"]) == (405, "method_not_allowed")


def test_a_line_names_the_route_and_not_the_path(service):
    answer = ask(service.port, "GET", "/v1/models/ft:my-secret-name?api_key=sk-secret")
    assert service.line_of(answer.headers["x-request-id"])["route"] == "/v1/models/{model}"


@pytest.mark.parametrize("sent", ["abc", "A.b_c-9", "x" * 128])
def test_a_clients_id_is_kept(service, sent):
    answer = ask(service.port, "GET", "/v1/jobs", headers={"X-Request-ID": sent})
    assert answer.headers["x-request-id"] == sent


@pytest.mark.parametrize("sent", ["", "x" * 129, "a b", 'a"b', "a{b}", "\xe9", "a;b"])
def test_row_25_an_id_that_could_forge_a_line_is_replaced(service, sent):
    answer = ask(service.port, "GET", "/v1/jobs", headers={"x-request-id": sent})
    assert answer.headers["x-request-id"].startswith("req_")


def test_a_defects_traceback_is_in_the_log_under_the_requests_id(service):
    answer = post(service.port, "/v1/fail", None)
    line = service.line_of(answer.headers["x-request-id"], "unexpected_error")
    assert line["level"] == "error"
    assert "RuntimeError: SELECT secret" in line["exception"]
    tracebacks = [found for found in service.lines() if "SELECT secret" in str(found)]
    assert all(found["event"] == "unexpected_error" for found in tracebacks)


def test_nothing_that_clients_send_is_logged(service):
    secret = "sk-very-secret"
    headers = {"authorization": f"Bearer {secret}", "content-type": "application/json"}
    ask(service.port, "POST", f"/v1/anything?api_key={secret}", {"text": secret}, headers)
    ask(service.port, "POST", "/v1/jobs", {secret: secret}, headers)
    ask(service.port, "GET", f"/{secret}", headers=headers)
    ask(service.port, "GET", "/v1/database", headers=headers)
    assert secret not in json.dumps(service.lines())
    assert "SELECT secret" not in json.dumps([line for line in service.lines() if "unexpected" not in line["event"]])


def test_every_line_is_json_with_event_level_and_time(service):
    assert all({"event", "level", "timestamp"} <= set(line) for line in service.lines())
    assert any("Started server process" in line["event"] for line in service.lines())


# Formats, without a server


@pytest.fixture
def log_to(monkeypatch):
    """Configure logging for one test; give back what was configured before."""
    root, uvicorn_error = logging.getLogger(), logging.getLogger("uvicorn.error")
    before = root.handlers[:], root.level, structlog.get_config(), uvicorn_error.filters[:]

    def configure(*, pretty: bool) -> io.StringIO:
        stream = io.StringIO()
        monkeypatch.setattr(sys, "stderr", stream)
        configure_logging(pretty=pretty)
        return stream

    yield configure
    root.handlers, uvicorn_error.filters = before[0], before[3]
    root.setLevel(before[1])
    structlog.configure(**before[2])


FORGED = 'name\n{"event": "forged"}\r\x1b[2K\u2028done'


@pytest.mark.parametrize("pretty", [False, True])
def test_row_25_a_value_cannot_forge_a_line(log_to, pretty):
    stream = log_to(pretty=pretty)
    structlog.get_logger("test").info("alias_set", name=FORGED)
    logging.getLogger("uvicorn.error").warning("from uvicorn: %s", FORGED)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    assert "\x1b[2K" not in stream.getvalue()


def test_bound_ids_are_on_lines_of_every_logger(log_to):
    stream = log_to(pretty=False)
    with structlog.contextvars.bound_contextvars(request_id="r", job_id="j"):
        structlog.get_logger("test").info("one")
        logging.getLogger("somebody.else").warning("two")
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [(line["event"], line["request_id"], line["job_id"]) for line in lines] == [
        ("one", "r", "j"),
        ("two", "r", "j"),
    ]


def test_a_traceback_for_people_shows_no_local_variables(log_to):
    stream = log_to(pretty=True)
    text_of_a_user = "private"
    try:
        raise RuntimeError("broken")
    except RuntimeError:
        structlog.get_logger("test").exception("failed")
    assert "RuntimeError: broken" in stream.getvalue()
    assert text_of_a_user not in stream.getvalue()


def test_ids_differ():
    assert len({new_request_id() for _ in range(1000)}) == 1000


def test_anything_but_http_passes_through():
    seen = []

    async def application(scope, receive, send):
        seen.append(scope)

    coroutine = RequestTelemetry(application)({"type": "lifespan"}, None, None)
    with pytest.raises(StopIteration):
        coroutine.send(None)
    assert seen == [{"type": "lifespan"}]
