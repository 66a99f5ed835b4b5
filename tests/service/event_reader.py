"""A reader of Server-Sent Events that keeps to the standard, and forgets what it didn't get whole."""

import contextlib
import socket
from collections.abc import Iterator
from typing import NamedTuple

from tests.installation import Installation
from tests.service.edge_server import connect


class Event(NamedTuple):
    """What an EventSource would dispatch."""

    name: str
    data: str
    id: str


class EventReader:
    """One connection to a job's stream. `comments` counts the signs of life."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._received = b""
        self._ended = False
        self.comments: list[str] = []

    def events(self, *, at_most_bytes: int | None = None) -> Iterator[Event]:
        """Events as they come, until the stream ends or so many bytes of it have come."""
        name, data, number = "", [], ""
        for line in self._lines(at_most_bytes):
            field, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if line.startswith(":"):
                self.comments.append(value)
            elif field == "event":
                name = value
            elif field == "data":
                data.append(value)
            elif field == "id":
                number = value
            elif not line and data:
                yield Event(name, "\n".join(data), number)
                name, data = "", []

    @property
    def has_ended(self) -> bool:
        """Whether the service ended the stream, and not the network."""
        return self._ended

    def _lines(self, at_most_bytes: int | None) -> Iterator[str]:
        line = b""
        for piece in self._body(at_most_bytes):
            *whole, line = (line + piece).split(b"\n")
            yield from (each.decode() for each in whole)

    def _body(self, at_most_bytes: int | None) -> Iterator[bytes]:
        """The pieces of a chunked body."""
        left = at_most_bytes
        while left is None or left > 0:
            size = int(self._until(b"\r\n"), 16)
            self._need(size + 2)
            piece, self._received = self._received[:size], self._received[size + 2 :]
            if size == 0:
                self._ended = True
                return
            yield piece if left is None else piece[:left]
            left = None if left is None else left - size

    def head(self) -> str:
        """The head of the answer."""
        return self._until(b"\r\n\r\n").decode()

    def _until(self, mark: bytes) -> bytes:
        while mark not in self._received:
            self._receive()
        found, _, self._received = self._received.partition(mark)
        return found

    def _need(self, size: int) -> None:
        while len(self._received) < size:
            self._receive()

    def _receive(self) -> None:
        data = self._connection.recv(4096)
        if not data:
            raise ConnectionResetError
        self._received += data


@contextlib.contextmanager
def reading(installation: Installation, job_id: str, *, after: str = "0") -> Iterator[EventReader]:
    """A stream behind an event, closed on the way out."""
    head = (
        f"GET /v1/fine_tuning/jobs/{job_id}/events/stream HTTP/1.1\r\nHost: x\r\n"
        f"Authorization: Bearer {installation.key}\r\nLast-Event-ID: {after}\r\n\r\n"
    )
    with contextlib.closing(connect(int(installation.url.rpartition(":")[2]))) as connection:
        connection.settimeout(60)
        connection.sendall(head.encode())
        reader = EventReader(connection)
        assert reader.head().startswith("HTTP/1.1 200")
        yield reader
