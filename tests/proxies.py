"""A TCP proxy in front of a server, that falls silent, refuses, or loses answers when a test says so."""

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Literal
from urllib.parse import parse_qs, unquote, urlsplit

Passing = Callable[[bytes], bytes | None]
When = Literal["before", "after"]

#: How a transaction is ended: its type, its length and its text.
_COMMIT = b"Q\x00\x00\x00\x0bCOMMIT\x00"
_RESET = struct.pack("ii", 1, 0)


class Proxy:
    """Passes bytes on between `port` and a server. What hooks return is passed on; None cuts the link."""

    def __init__(self, connect: Callable[[], socket.socket]) -> None:
        self._connect = connect
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._flowing = threading.Event()
        self._flowing.set()
        self._refusing = False
        self._links: set[tuple[socket.socket, socket.socket]] = set()

    def fall_silent(self) -> None:
        """Read nothing more and say nothing. The kernel goes on acknowledging what clients send."""
        self._flowing.clear()

    def refuse(self) -> None:
        """Be as a server that was stopped: links are cut, and new ones at once."""
        self._refusing = True
        self.cut_all()

    def recover(self) -> None:
        """Pass on again, what was held back first."""
        self._refusing = False
        self._flowing.set()

    def cut_all(self) -> None:
        for link in list(self._links):
            _cut(*link)

    def hooks(self) -> tuple[Passing, Passing]:
        """What looks at a new link's bytes: those for the server, and those from it."""
        return _unchanged, _unchanged

    def run(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def close(self) -> None:
        # A listener that is only closed leaves its accept waiting.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.recover()
        self.cut_all()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            if self._refusing:
                _cut(client)
                return
            with self._connect() as server:
                self._pass_between(client, server)

    def _pass_between(self, client: socket.socket, server: socket.socket) -> None:
        link = (client, server)
        self._links.add(link)
        up, down = self.hooks()
        back = threading.Thread(target=self._pump, args=(server, client, down), daemon=True)
        back.start()
        self._pump(client, server, up)
        back.join()
        self._links.discard(link)

    def _pump(self, source: socket.socket, target: socket.socket, hook: Passing) -> None:
        with contextlib.suppress(OSError):
            while True:
                self._flowing.wait()
                data = source.recv(65536)
                self._flowing.wait()
                passed = hook(data) if data else None
                if passed is None:
                    break
                target.sendall(passed)
        _cut(source, target)


class AnswerLosingProxy(Proxy):
    """In front of an HTTP server: loses the answers to the next `losses` requests that begin with `request`."""

    def __init__(self, port: int, request: bytes, losses: int) -> None:
        super().__init__(lambda: socket.create_connection(("127.0.0.1", port)))
        self._request = request
        self.losses = losses

    def hooks(self) -> tuple[Passing, Passing]:
        asked = threading.Event()

        def up(data: bytes) -> bytes:
            if data.startswith(self._request):
                asked.set()
            return data

        def down(data: bytes) -> bytes | None:
            # The service answers once everything is done, so it is when an answer begins.
            if asked.is_set() and self.losses:
                self.losses -= 1
                return None
            asked.clear()
            return data

        return up, down


class PostgresProxy(Proxy):
    """In front of PostgreSQL: loses the answer to an exchange, or what is asked in it."""

    def __init__(self, database_url: str) -> None:
        """database_url: of a server on a Unix socket."""
        self._url = urlsplit(database_url)
        directory = unquote(parse_qs(self._url.query)["host"][0])
        super().__init__(to_unix_socket(f"{directory}/.s.PGSQL.5432"))
        self._exchanges = 0
        self._written: bytes | None = None
        self._when: When = "after"

    @property
    def url(self) -> str:
        """The database behind the proxy."""
        return f"postgresql://postgres@127.0.0.1:{self.port}{self._url.path}?sslmode=disable"

    def cut_at(self, exchange: int, when: When) -> None:
        """Cut the link at the n-th exchange from now on: before the server gets it, or before its answer.

        Links that listen for notifications don't count: what they say, they say at no particular time.
        """
        self._exchanges, self._when = exchange, when

    @property
    def has_cut(self) -> bool:
        return self._exchanges == 0

    def fall_silent_at_commit_of(self, table: str) -> None:
        """Let nobody hear the answer to the commit of the next new row of a table, nor anything after that."""
        self._written = f"INSERT INTO {table} ".encode()

    def hooks(self) -> tuple[Passing, Passing]:
        held = bytearray()
        is_new = True
        writes, commits, listens = threading.Event(), threading.Event(), threading.Event()

        def up(data: bytes) -> bytes | None:
            if self._written and self._written in data:
                writes.set()
            if writes.is_set() and _COMMIT in data:
                commits.set()
            if data.startswith((b"Q", b"P")) and b"LISTEN " in data:
                listens.set()
            if self._when == "before" and self._exchanges == 1 and not listens.is_set():
                self._exchanges = 0
                return None
            return data

        def down(data: bytes) -> bytes | None:
            nonlocal is_new
            held.extend(data)
            end = _end_of_exchange(held)
            answer = bytes(held[:end])
            del held[:end]
            if answer and commits.is_set():
                writes.clear()
                commits.clear()
                self._written = None
                self.fall_silent()
            elif answer and is_new:  # the greeting
                is_new = False
            elif answer and self._exchanges and not listens.is_set():
                self._exchanges -= 1
                if self._exchanges == 0 and self._when == "after":
                    return None
            self._flowing.wait()
            return answer

        return up, down


class ValkeyProxy(Proxy):
    """In front of Valkey."""

    def __init__(self, redis_url: str) -> None:
        """redis_url: of a server on a Unix socket."""
        self._url = urlsplit(redis_url)
        super().__init__(to_unix_socket(unquote(self._url.path)))

    @property
    def url(self) -> str:
        """The queue behind the proxy."""
        return f"redis://127.0.0.1:{self.port}/{parse_qs(self._url.query)['db'][0]}"


def _end_of_exchange(received: bytearray) -> int:
    """Where the last ReadyForQuery in what a server sent ends; 0 if there is none yet."""
    at, end = 0, 0
    while at + 5 <= len(received):
        kind = received[at]
        at += 1 + int.from_bytes(received[at + 1 : at + 5], "big")
        if kind == ord("Z") and at <= len(received):
            end = at
    return end


@contextmanager
def running(*proxies: Proxy) -> Iterator[None]:
    with ExitStack() as stack:
        for proxy in proxies:
            threading.Thread(target=proxy.run, daemon=True).start()
            stack.callback(proxy.close)
        yield


def to_unix_socket(path: str) -> Callable[[], socket.socket]:
    def connect() -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(path)
        return connection

    return connect


def _unchanged(data: bytes) -> bytes:
    return data


def _cut(*ends: socket.socket) -> None:
    for end in ends:
        with contextlib.suppress(OSError):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            end.shutdown(socket.SHUT_RDWR)
