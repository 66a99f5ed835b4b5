"""TCP proxies between a fleet's processes and its servers, and what the weather on them may be.

Each proxy listens on a port of its own and passes bytes on to a server's Unix socket. They all run in one thread.
`up` is from the client to the server, `down` is back.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Direction = Literal["up", "down"]
BOTH: frozenset[Direction] = frozenset({"up", "down"})
#: A simple query of PostgreSQL's protocol: its type, its length and its text.
_COMMIT = b"Q\x00\x00\x00\x0bCOMMIT\x00"
#: How PostgreSQL tells a client the process that serves it, before its first query.
_BACKEND_KEY = b"K\x00\x00\x00\x0c"
_CHUNK_BYTES = 65536


@dataclass(frozen=True)
class Weather:
    """How bytes are passed on.

    `silent`: nothing is read any more, and nothing said about it: what was sent is acknowledged by the kernel until its
    buffers are full. What was on its way arrives when the silence ends.
    """

    silent: frozenset[Direction] = frozenset()
    refusing: bool = False
    delay_seconds: float = 0.0
    jitter_seconds: float = 0.0
    bytes_per_second: float | None = None
    slice_bytes: int | None = None
    cut_after_bytes: int | None = None  # of each link, in both directions together
    swallow_commits: int = 0  # the answer to this commit from now on, and the link with it; 0: none


@dataclass
class _Link:
    """One connection through a proxy."""

    ends: tuple[asyncio.WriteTransport, asyncio.WriteTransport]
    passed: int = 0
    committing: bool = False
    backend: int | None = None  # the process that serves it
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def close(self) -> None:
        for end in self.ends:
            end.abort()


@dataclass
class Effects:
    """What a proxy has done to its links since the weather last changed; a fault without effect isn't counted."""

    held_bytes: int = 0
    cut_links: int = 0
    swallowed_commits: int = 0
    refused_links: int = 0
    passed_bytes: int = 0

    @property
    def any(self) -> int:
        """Whether a client could have noticed."""
        return self.held_bytes or self.cut_links or self.swallowed_commits or self.refused_links


class Proxy:
    """One port, one server. Threads may set the weather at any time."""

    def __init__(self, name: str, target: Path, loop: asyncio.AbstractEventLoop) -> None:
        self.name = name
        self.port = 0
        self.effects = Effects()
        self._target = target
        self._loop = loop
        self._weather = Weather()
        self._changed = asyncio.Event()
        self._links: list[_Link] = []
        self._commits_left = 0
        self._server: asyncio.Server | None = None

    @property
    def weather(self) -> Weather:
        return self._weather

    def set(self, weather: Weather) -> None:
        """Change the weather, for links that are open and for those to come."""
        _call(self._loop, self._set(weather))

    @contextmanager
    def under(self, weather: Weather) -> Iterator[None]:
        """This weather during the block, and fair weather after it."""
        self.set(weather)
        try:
            yield
        finally:
            self.set(Weather())

    def backends(self) -> set[int]:
        """Ids of the PostgreSQL processes at the other end of open links."""
        return {link.backend for link in list(self._links) if link.backend is not None}

    def reset_links(self) -> int:
        """Close every link, as a router that restarts. Returns how many there were."""
        return _call(self._loop, self._reset())

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        await self._reset()

    async def _set(self, weather: Weather) -> None:
        self._weather = weather
        self._commits_left = weather.swallow_commits
        self.effects = Effects()
        self._changed.set()
        self._changed = asyncio.Event()

    async def _reset(self) -> int:
        links = list(self._links)
        for link in links:
            self._cut(link)
        return len(links)

    async def _serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        if self._weather.refusing:
            self.effects.refused_links += 1
            to_client.transport.abort()
            return
        try:
            server, to_server = await asyncio.open_unix_connection(str(self._target))
        except OSError:  # the server is away: the client sees a connection that ends at once
            to_client.transport.abort()
            return
        link = _Link((to_client.transport, to_server.transport))
        self._links.append(link)
        link.tasks = [
            asyncio.ensure_future(self._pump(link, client, to_server, "up")),
            asyncio.ensure_future(self._pump(link, server, to_client, "down")),
        ]
        try:
            await asyncio.wait(link.tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            link.close()
            self._links.remove(link)
            await asyncio.gather(*link.tasks, return_exceptions=True)

    async def _pump(
        self, link: _Link, source: asyncio.StreamReader, target: asyncio.StreamWriter, direction: Direction
    ) -> None:
        try:
            while True:
                await self._until_heard(direction, 0)
                data = await source.read(_CHUNK_BYTES)
                await self._until_heard(direction, len(data))
                if not data or not await self._passed(link, data, target, direction):
                    return
        except (OSError, asyncio.CancelledError):
            return

    async def _until_heard(self, direction: Direction, held: int) -> None:
        if direction in self._weather.silent:
            self.effects.held_bytes += held
        while direction in self._weather.silent:
            await self._changed.wait()

    async def _passed(self, link: _Link, data: bytes, target: asyncio.StreamWriter, direction: Direction) -> bool:
        """Pass on bytes as the weather lets them; False once the link is cut."""
        if self._is_swallowed(link, data, direction):
            self.effects.swallowed_commits += 1
            self._cut(link)
            return False
        for piece in self._slices(data):
            await self._wait_for(piece)
            limit = self._weather.cut_after_bytes
            if limit is not None and link.passed + len(piece) > limit:
                target.write(piece[: max(limit - link.passed, 0)])
                await target.drain()
                self._cut(link)
                return False
            link.passed += len(piece)
            self.effects.passed_bytes += len(piece)
            target.write(piece)
            await target.drain()
        return True

    def _is_swallowed(self, link: _Link, data: bytes, direction: Direction) -> bool:
        if direction == "down":
            if link.backend is None and (at := data.find(_BACKEND_KEY)) >= 0:
                link.backend = int.from_bytes(data[at + 5 : at + 9], "big")
            return link.committing
        if self._commits_left and _COMMIT in data:
            self._commits_left -= 1
            link.committing = self._commits_left == 0
        return False

    def _slices(self, data: bytes) -> list[bytes]:
        size = self._weather.slice_bytes or len(data)
        return [data[start : start + size] for start in range(0, len(data), size)]

    async def _wait_for(self, piece: bytes) -> None:
        weather = self._weather
        seconds = weather.delay_seconds + random.uniform(-1, 1) * weather.jitter_seconds
        if weather.bytes_per_second:
            seconds += len(piece) / weather.bytes_per_second
        if seconds > 0:
            self.effects.held_bytes += len(piece)
            await asyncio.sleep(seconds)

    def _cut(self, link: _Link) -> None:
        self.effects.cut_links += 1
        link.close()


class Proxies:
    """All proxies of a fleet, on an event loop in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxies", daemon=True)
        self._proxies: list[Proxy] = []
        self._thread.start()

    def open(self, name: str, target: Path) -> Proxy:
        """A new proxy in front of a Unix socket."""
        proxy = _call(self._loop, self._opened(name, target))
        self._proxies.append(proxy)
        return proxy

    def clear(self) -> None:
        """Fair weather everywhere."""
        for proxy in self._proxies:
            proxy.set(Weather())

    def close(self) -> None:
        """Close all of them, and end the thread."""
        for proxy in self._proxies:
            _call(self._loop, proxy.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _opened(self, name: str, target: Path) -> Proxy:
        proxy = Proxy(name, target, self._loop)
        await proxy.open()
        return proxy


def _call(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any]) -> Any:
    future: Future[Any] = asyncio.run_coroutine_threadsafe(work, loop)
    return future.result(timeout=30)
