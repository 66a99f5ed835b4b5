"""Requests to an installation without much ado: many of them take little time, and none waits for ever."""

from typing import Any

from tests.installation import Installation
from tests.service.edge_server import Answer, ask


def port_of(api: Installation) -> int:
    return int(api.url.rpartition(":")[2])


def send(api: Installation, method: str, path: str, body: Any = None, **headers: str | bytes) -> Answer:
    """A request with the installation's key. Fails the test unless it is answered within seconds."""
    kind = {} if isinstance(body, bytes) or body is None else {"Content-Type": "application/json"}
    return ask(port_of(api), method, path, body, {"Authorization": f"Bearer {api.key}", **kind, **headers})


def is_refused(answer: Answer) -> bool:
    """Whether it says that a server is away, and when to come again."""
    return (answer.status, answer.code) == (503, "service_unavailable") and float(answer.headers["retry-after"]) > 0
