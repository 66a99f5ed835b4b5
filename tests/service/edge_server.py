"""A small application behind the whole edge, on a real uvicorn, for the tests of every part of the edge.

Run as a script it serves on a free port, prints the port, and logs to stderr as in production.
"""

import asyncio
import contextlib
import http.client
import json
import socket
import threading
from collections.abc import Iterator
from typing import Annotated, Any, Literal, NamedTuple

import redis.exceptions
import sqlalchemy.exc
import structlog
import uvicorn
from fastapi import APIRouter, Body, FastAPI, Query, Request, UploadFile
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from api_schemas.errors import LikenessError
from service.errors import ERROR_RESPONSES, install_error_handlers
from service.http_protocol import StrictHTTPProtocol
from service.strict_route import StrictRoute, stream_body
from service.telemetry import RequestTelemetry, configure_logging

SOCKET_SECONDS = 10.0
JSON_LIMIT = 1_500_000


class Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


def _refuse_tokens(value: Any) -> Any:
    if isinstance(value, list) and value and all(isinstance(item, int) for item in value):
        raise PydanticCustomError("token_input_unsupported", "Send the texts, not tokens.")
    return value


class Hyperparameters(Strict):
    n_epochs: Annotated[int, Field(ge=1, le=50)] | Literal["auto"] = "auto"
    learning_rate: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | Literal["auto"] | None = None
    batch_size: Annotated[int, Field(ge=2)] = 8
    symmetric: bool = True


class Loss(Strict):
    name: Literal["ntxent", "supcon"] = "ntxent"
    temperature: Annotated[float, Field(gt=0)] | Literal["learnable"] = 0.05


class Contrastive(Strict):
    loss: Loss = Loss()
    hyperparameters: Hyperparameters = Hyperparameters()
    columns: Annotated[list[str], Field(max_length=3)] = []


class ContrastiveMethod(Strict):
    type: Literal["contrastive"]
    contrastive: Contrastive = Contrastive()


class OtherMethod(Strict):
    type: Literal["other"]


class JobCreate(Strict):
    model: str
    training_file: str
    suffix: Annotated[str, Field(pattern=r"^[a-z0-9-]+$", max_length=18)] | None = None
    seed: int | None = None
    method: Annotated[ContrastiveMethod | OtherMethod, Field(discriminator="type")] | None = None
    metadata: dict[str, str] = {}


class EmbeddingCreate(Strict):
    input: Annotated[str | Annotated[list[str], Field(max_length=2048)], BeforeValidator(_refuse_tokens)]


class LargeRoute(StrictRoute):
    max_json_bytes = 2 * JSON_LIMIT


class SmallRoute(StrictRoute):
    max_json_bytes = JSON_LIMIT


router = APIRouter(prefix="/v1", route_class=SmallRoute)
large = APIRouter(prefix="/v1", route_class=LargeRoute)


@router.post("/jobs")
def create_job(body: JobCreate) -> dict[str, Any]:
    return body.model_dump()


@router.get("/jobs")
def list_jobs(limit: Annotated[int, Query(ge=1, le=100)] = 20) -> dict[str, int]:
    return {"limit": limit}


@router.post("/embeddings")
async def create_embedding(body: EmbeddingCreate) -> dict[str, Any]:
    return body.model_dump()


@router.post("/anything")
async def echo(body: Annotated[Any, Body()]) -> Any:
    return {"value": body}


@large.post("/large")
async def echo_length(body: Annotated[list[str], Body()]) -> int:
    return len(body[0])


@router.post("/optional")
async def optional(body: JobCreate | None = None) -> dict[str, bool]:
    return {"sent": body is not None}


@router.post("/files")
async def upload(file: UploadFile) -> dict[str, Any]:
    return {"name": file.filename, "bytes": len(await file.read())}


@router.post("/raw")
async def count_bytes(request: Request) -> int:
    return sum([len(piece) async for piece in stream_body(request, 50_000_000)])


@router.post("/unread")
async def leave_body_unread() -> dict[str, bool]:
    return {"done": True}


@router.get("/models/{model:path}")
async def get_model(model: str) -> dict[str, str]:
    return {"model": model}


@router.post("/fail")
async def fail() -> None:
    raise RuntimeError("SELECT secret FROM /etc/passwd")


@router.get("/fail-late")
async def fail_late() -> StreamingResponse:
    async def pieces() -> Any:
        yield b"first"
        raise RuntimeError("too late for a status")

    return StreamingResponse(pieces())


@router.get("/database")
async def database_away() -> None:
    raise sqlalchemy.exc.OperationalError("SELECT secret", {"key": "sk-1"}, Exception("connection refused"))


@router.get("/queue")
async def queue_away() -> None:
    raise redis.exceptions.ConnectionError("Error 111 connecting to 10.0.0.1:6379")


@router.get("/refused")
async def refused() -> None:
    raise LikenessError("job_already_ended", "It has ended.", param="job", headers={"x-why": "ended"})


@router.get("/big-answer")
async def big_answer() -> StreamingResponse:
    async def pieces() -> Any:
        for _ in range(2000):
            yield b"x" * 65536

    return StreamingResponse(pieces())


@router.get("/for-ever")
async def wait_for_ever() -> None:
    await asyncio.Event().wait()


def create_app() -> FastAPI:
    app = FastAPI(responses=ERROR_RESPONSES)
    install_error_handlers(app)
    app.add_middleware(RequestTelemetry)
    app.include_router(router)
    app.include_router(large)
    return app


def make_server(app: Any, protocol: type[StrictHTTPProtocol]) -> uvicorn.Server:
    config = uvicorn.Config(
        app, http=protocol, ws="none", lifespan="off", log_config=None, access_log=False,
        server_header=False, proxy_headers=False, timeout_graceful_shutdown=1,
    )  # fmt: skip
    return uvicorn.Server(config)


@contextlib.contextmanager
def serving(protocol: type[StrictHTTPProtocol] = StrictHTTPProtocol, app: Any = None) -> Iterator[int]:
    """The port of a server in a thread. The socket listens from the start, so nobody waits for it."""
    with _quiet_log(), socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
        server = make_server(app or create_app(), protocol)
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(SOCKET_SECONDS)
            assert not thread.is_alive()


@contextlib.contextmanager
def _quiet_log() -> Iterator[None]:
    """Log to nowhere: unconfigured, structlog paints tracebacks, which takes seconds."""
    before = structlog.get_config()
    structlog.configure(
        processors=[structlog.processors.KeyValueRenderer()], logger_factory=structlog.ReturnLoggerFactory()
    )
    try:
        yield
    finally:
        structlog.configure(**before)


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        return self.json["error"]["code"]

    @property
    def param(self) -> str | None:
        return self.json["error"]["param"]

    @property
    def message(self) -> str:
        return self.json["error"]["message"]


def ask(port: int, method: str, path: str, body: Any = None, headers: Any = None) -> Answer:
    """One request as a well-behaved client sends it; `body` is JSON unless it is bytes."""
    content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SOCKET_SECONDS)
    with contextlib.closing(connection):
        connection.request(method, path, content, headers or {"content-type": "application/json"})
        return _read_answer(connection.getresponse())


def _read_answer(response: http.client.HTTPResponse) -> Answer:
    headers = {name.lower(): value for name, value in response.getheaders()}
    return Answer(response.status, headers, response.read())


def post(port: int, path: str, body: Any) -> Answer:
    return ask(port, "POST", path, body)


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=SOCKET_SECONDS)


def read_answer(connection: socket.socket) -> Answer:
    response = http.client.HTTPResponse(connection)
    response.begin()
    return _read_answer(response)


def is_closed(connection: socket.socket) -> bool:
    """Read until the server closes; a socket timeout fails the test."""
    try:
        while connection.recv(65536):
            pass
    except ConnectionResetError:
        pass
    return True


if __name__ == "__main__":
    configure_logging(pretty=False)
    with socket.create_server(("127.0.0.1", 0)) as script_listener:
        print(script_listener.getsockname()[1], flush=True)  # noqa: T201  how the test learns the port
        asyncio.run(make_server(create_app(), StrictHTTPProtocol).serve(sockets=[script_listener]))
