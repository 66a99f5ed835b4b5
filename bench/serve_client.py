"""Clients of an embedding server, in a process of their own: a `Load` on stdin and its `Outcome` on stdout, as JSON.

They speak HTTP/1.1 over sockets they keep, with as little of their own as possible: what they take is missing to the
server on the same machine.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True)
class Load:
    """What is asked of a server, and for how long."""

    port: int
    key: str
    model: str
    texts: Sequence[str]  # of which each request takes the next
    clients: int = 1
    per_request: int = 1
    seconds: float = 5.0
    warm_seconds: float = 1.0
    rate: float | None = None  # requests a second, at random moments, whoever waits; None: each client waits
    encoding: str = "base64"
    path: str = "/v1/embeddings"


@dataclass
class Outcome:
    """What came of it, after the warm-up."""

    answered: int = 0  # requests
    texts: int = 0
    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)  # of answered requests, seconds
    statuses: dict[str, int] = field(default_factory=dict)
    broken: int = 0  # no answer at all

    @property
    def rate(self) -> float:
        """Texts a second."""
        return self.texts / self.seconds if self.seconds else 0.0

    def quantile(self, share: float) -> float:
        """Of the answered requests' latencies, in ms; NaN without any."""
        ordered = sorted(self.latencies)
        return 1e3 * ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else float("nan")


def put(load: Load) -> Outcome:
    """Put a load on a server, from another process."""
    return begin(load)()


def begin(load: Load) -> Waiting:
    """Begin to; call what is returned for the outcome."""
    command = [sys.executable, "-m", "bench.serve_client"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    process.stdin.write(json.dumps(asdict(load)))
    process.stdin.close()
    return Waiting(process)


@dataclass(frozen=True)
class Waiting:
    """A load that is being put on a server."""

    process: subprocess.Popen[str]

    def __call__(self) -> Outcome:
        assert self.process.stdout is not None
        with self.process.stdout as stdout:
            told = stdout.read()
        if self.process.wait() != 0:
            raise RuntimeError("the clients failed; see above")
        return Outcome(**json.loads(told))


class _Clients:
    def __init__(self, load: Load) -> None:
        self._load = load
        self._next = 0
        self._random = random.Random(0)
        self._began = time.perf_counter()
        self._counts_from = self._began + load.warm_seconds
        self._until = self._counts_from + load.seconds
        self.outcome = Outcome(seconds=load.seconds)

    async def run(self) -> Outcome:
        if self._load.rate is None:
            await asyncio.gather(*(self._closed() for _ in range(self._load.clients)))
        else:
            await self._open(self._load.rate)
        return self.outcome

    async def _closed(self) -> None:
        connection = _Connection(self._load.port)
        while time.perf_counter() < self._until:
            await self._ask(connection)
        connection.close()

    async def _open(self, rate: float) -> None:
        free: list[_Connection] = []
        asking: set[asyncio.Task[None]] = set()
        due = self._began
        while due < self._until:
            due += self._random.expovariate(rate)
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            task = asyncio.create_task(self._ask_on_any(free, due))
            asking.add(task)
            task.add_done_callback(asking.discard)
        if asking:
            await asyncio.wait(asking, timeout=60)
        self.outcome.broken += len(asking)  # those that hang

    async def _ask_on_any(self, free: list[_Connection], due: float) -> None:
        connection = free.pop() if free else _Connection(self._load.port)
        # From when it was to be sent: a server that slows its clients down must not look the better for it.
        await self._ask(connection, due)
        free.append(connection)

    async def _ask(self, connection: _Connection, due: float | None = None) -> None:
        body = self._body()
        began = due or time.perf_counter()
        try:
            status = await connection.post(self._load.path, body, self._load.key)
        except (OSError, asyncio.IncompleteReadError):
            connection.close()
            self.outcome.broken += 1
            await asyncio.sleep(0.05)
            return
        ended = time.perf_counter()
        # Of an open loop all that were sent in time count, however late the answer.
        if not self._counts_from <= (ended if due is None else due) <= self._until:
            return
        outcome = self.outcome
        outcome.statuses[str(status)] = outcome.statuses.get(str(status), 0) + 1
        if status == 200:
            outcome.answered += 1
            outcome.texts += self._load.per_request
            outcome.latencies.append(ended - began)

    def _body(self) -> bytes:
        texts = self._load.texts
        taken = [texts[(self._next + n) % len(texts)] for n in range(self._load.per_request)]
        self._next += self._load.per_request
        given = taken if self._load.per_request > 1 else taken[0]
        asked = {"model": self._load.model, "input": given, "encoding_format": self._load.encoding}
        return json.dumps(asked).encode()


class _Connection:
    """A connection that is kept."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, path: str, body: bytes, key: str) -> int:
        """The status; the body is read. Raises OSError, asyncio.IncompleteReadError."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port, limit=2**26)
        reader, writer = self._streams
        head = (
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        answer = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        length = int(answer.split("content-length:", 1)[1].split("\r\n", 1)[0])
        await reader.readexactly(length)
        if "connection: close" in answer:
            self.close()
        return int(answer.split(" ", 2)[1])

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


if __name__ == "__main__":
    print(json.dumps(asdict(asyncio.run(_Clients(Load(**json.load(sys.stdin))).run()))))
