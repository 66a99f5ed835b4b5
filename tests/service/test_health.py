"""Alive, ready, and which of a service's roles run where."""

import contextlib
import itertools
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest
from pydantic import SecretStr
from redis import Redis

from encoders import registry
from service.app import create_app
from service.settings import ServiceSettings
from storage import teams
from tests.installation import PAIRS, TINY, Installation, environment_of, running_installation
from tests.service.edge_server import ask, connect, serving

SECONDS = 15.0


def test_a_running_service_is_alive_and_ready(shared: Installation) -> None:
    assert shared.request("GET", "/healthz", headers={"Authorization": ""}).json() == {"status": "alive"}
    answer = shared.request("GET", "/readyz", headers={"Authorization": ""})
    assert answer.status_code == 200
    assert answer.json() == {"status": "ready", "database": "ok", "queue": "ok", "inference": "ok"}


def test_without_its_database_a_service_is_alive_but_not_ready(settings: ServiceSettings) -> None:
    away = settings.model_copy(update={"database_url": SecretStr("postgresql://nobody@/none?host=/nowhere")})
    key = _sound_key()
    with serving(app=create_app(away)) as port:
        assert ask(port, "GET", "/healthz").status == 200
        readiness = ask(port, "GET", "/readyz")
        assert (readiness.status, readiness.json["status"]) == (503, "not ready")
        assert (readiness.json["database"], readiness.json["inference"]) == ("failing", "ok")
        assert readiness.headers["retry-after"]
        refused = ask(port, "GET", "/v1/models", headers={"Authorization": f"Bearer {key}"})
        assert (refused.status, refused.code) == (503, "service_unavailable")
        assert refused.headers["retry-after"]
        assert "/nowhere" not in refused.body.decode()
        assert ask(port, "GET", "/v1/models").status == 401


def test_without_its_queue_a_service_is_ready_and_takes_jobs(installation: Installation) -> None:
    away = installation.settings.model_copy(update={"redis_url": SecretStr("unix:///nowhere/valkey.sock")})
    with running_installation(away) as without_queue:
        readiness = without_queue.request("GET", "/readyz")
        assert (readiness.status_code, readiness.json()["queue"]) == (200, "failing")
        file_id = without_queue.openai.files.create(file=("rows.jsonl", b"{}"), purpose="fine-tune").id
        assert without_queue.create_job(file_id).status == "validating_files"
    # A service that has its queue again hands over what waited, with the next thing that it hands over.
    later = installation.upload(PAIRS, validated=False)
    with Redis.from_url(installation.settings.required_redis_url) as redis:
        _until(lambda: all(redis.keys(f"rq:job:validate_file-{name}-*") for name in (file_id, later)))


def test_an_unmigrated_database_is_not_ready(servers: tuple[str, str], settings: ServiceSettings) -> None:
    empty = settings.model_copy(update={"database_url": SecretStr(servers[0])})  # the server's own, without tables
    with serving(app=create_app(empty)) as port:
        assert ask(port, "GET", "/readyz").json["database"] == "failing"


def test_the_api_role_has_no_inference_and_never_imports_torch(settings: ServiceSettings) -> None:
    program = (
        "import json, sys\n"
        "from service.app import create_app\n"
        "from service.settings import ServiceSettings\n"
        "paths = list(create_app(ServiceSettings(role='api')).openapi()['paths'])\n"
        "print(json.dumps([paths, sorted({'torch', 'numpy', 'tokenizers', 'safetensors'} & set(sys.modules))]))\n"
    )
    paths, imported = json.loads(
        subprocess.run(
            [sys.executable, "-c", program], check=True, stdout=subprocess.PIPE, env=environment_of(settings)
        ).stdout
    )
    assert imported == []
    assert {"/v1/files", "/v1/fine_tuning/jobs", "/v1/models", "/healthz", "/readyz"} <= set(paths)
    assert not {"/v1/embeddings", "/v1/similarity"} & set(paths)


@pytest.mark.parametrize(
    ("role", "inference", "there", "not_there"),
    [
        ("api", "not here", "/v1/models", "/v1/embeddings"),
        ("inference", "ok", "/v1/embeddings", "/v1/files"),
    ],
)
def test_a_role_serves_its_own_routes(
    settings: ServiceSettings, role: str, inference: str, there: str, not_there: str
) -> None:
    with running_installation(settings.model_copy(update={"role": role})) as installation:
        readiness = installation.request("GET", "/readyz")
        assert (readiness.status_code, readiness.json()["inference"]) == (200, inference)
        assert there in installation.request("GET", "/openapi.json").json()["paths"]
        body = {"model": TINY, "input": "a"}
        assert installation.request("POST", not_there, json=body).json()["error"]["code"] == "not_found"


def test_an_installation_whose_models_are_all_made_by_jobs_is_ready_without_weights(
    settings: ServiceSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "find_spec", lambda name: None)
    with running_installation(settings.model_copy(update={"base_models_dir": None})) as installation:
        readiness = installation.request("GET", "/readyz")
        assert (readiness.status_code, readiness.json()["inference"]) == (200, "ok")


# Load


class _Busy:
    """A pass that takes as long as a test likes."""

    is_given_up = False

    def __init__(self, gate: threading.Event) -> None:
        self.run = lambda: gate.wait(3 * SECONDS)  # longer than anybody looks


def _new_texts(count: int) -> list[str]:
    """Texts that nobody has embedded before."""
    return [f"text {next(_numbers)}" for _ in range(count)]


_numbers = itertools.count()


@contextlib.contextmanager
def _no_forward_pass(installation: Installation) -> Iterator[None]:
    """Keep the threads of the forward passes busy, so that every text has to wait."""
    assert installation.service.inference is not None
    gate = threading.Event()
    lanes = installation.service.inference.lanes
    for _ in range(lanes.count):
        lanes._passes.put(_Busy(gate))
    try:
        yield
    finally:
        gate.set()


def _is_busy(installation: Installation) -> bool:
    assert installation.service.inference is not None
    return installation.service.inference.batcher.is_busy


def _until(condition: Callable[[], bool]) -> None:
    """Look again and again; the pause only keeps the looking cheap."""
    pause = threading.Event()
    for _ in range(int(SECONDS / 0.01)):
        if condition():
            return
        pause.wait(0.01)
    pytest.fail("what was waited for did not happen")


def _send(installation: Installation, path: str, body: object) -> contextlib.closing:
    """A request whose answer nobody has read yet."""
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {installation.key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    connection = connect(int(installation.url.rpartition(":")[2]))
    connection.sendall(head.encode() + content)
    return contextlib.closing(connection)


@pytest.mark.parametrize(
    ("path", "field", "others"),
    [("/v1/embeddings", "input", {}), ("/v1/similarity", "documents", {"query": "text"})],
)
def test_a_client_that_leaves_frees_its_place_in_the_queue(
    shared: Installation, path: str, field: str, others: dict[str, str]
) -> None:
    def body() -> dict[str, object]:
        return {"model": TINY, field: _new_texts(100), **others}

    assert shared.request("POST", path, json=body()).status_code == 200
    with _no_forward_pass(shared):
        with _send(shared, path, body()):
            _until(lambda: _is_busy(shared))
        _until(lambda: not _is_busy(shared))
    assert shared.request("POST", path, json=body()).status_code == 200


def test_a_service_under_load_refuses_more_but_stays_ready(settings: ServiceSettings) -> None:
    def body(count: int) -> dict[str, object]:
        return {"model": TINY, "input": _new_texts(count)}

    with running_installation(settings.model_copy(update={"queued_tokens": 100})) as installation:
        assert installation.request("POST", "/v1/embeddings", json=body(20)).status_code == 200
        with _no_forward_pass(installation), _send(installation, "/v1/embeddings", body(20)):
            _until(lambda: _is_busy(installation))
            refused = installation.request("POST", "/v1/embeddings", json=body(21))
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
            assert float(refused.headers["retry-after"]) > 0
            assert float(refused.headers["retry-after-ms"]) > 0
            assert installation.request("GET", "/readyz").status_code == 200
        _until(lambda: not _is_busy(installation))
        assert installation.request("POST", "/v1/embeddings", json=body(20)).status_code == 200


def test_a_request_that_gives_itself_a_time_gets_no_answer_after_it(shared: Installation) -> None:
    body = {"model": TINY, "input": _new_texts(1)}
    with _no_forward_pass(shared):
        late = shared.request("POST", "/v1/embeddings", json=body, headers={"x-request-timeout-ms": "50"})
        assert (late.status_code, late.json()["error"]["code"]) == (504, "request_deadline_exceeded")
        assert late.headers["x-should-retry"] == "false"
        assert not _is_busy(shared)
    in_time = shared.request("POST", "/v1/embeddings", json=body, headers={"x-request-timeout-ms": "15000"})
    assert in_time.status_code == 200
    wrong = shared.request("POST", "/v1/embeddings", json=body, headers={"x-request-timeout-ms": "soon"})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "x-request-timeout-ms")


def test_a_service_whose_forward_pass_hangs_is_not_ready(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.inference.batcher._STUCK_SECONDS", 0.0)
    with _no_forward_pass(installation), _send(installation, "/v1/embeddings", {"model": TINY, "input": "text"}):
        _until(lambda: _is_busy(installation))
        readiness = installation.request("GET", "/readyz")
        assert (readiness.status_code, readiness.json()["inference"]) == (503, "failing")
        assert installation.request("GET", "/healthz").status_code == 200
    _until(lambda: not _is_busy(installation))
    assert installation.request("GET", "/readyz").status_code == 200


def _sound_key() -> str:
    """A key that its checksum doesn't give away."""
    secret = "k" * 40
    return f"lk_{secret}{teams._checksum(secret)}"
