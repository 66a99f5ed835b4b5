"""A network between a client and PostgreSQL that can be made to swallow what it is given."""

from __future__ import annotations

import selectors
import socket
import threading
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

_SOCKET = ".s.PGSQL.5432"


class Proxy:
    """Passes bytes on between Unix sockets, until it is silent: then it takes them, and passes nothing on."""

    def __init__(self, directory: Path, server: str) -> None:
        """server: the URL of PostgreSQL. The proxy's own is `url`."""
        self._server = f"{parse_qs(urlsplit(server).query)['host'][0]}/{_SOCKET}"
        self.url = f"{server.partition('?')[0]}?host={quote(str(directory))}"
        self.silent = False
        self._selector = selectors.DefaultSelector()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(directory / _SOCKET))
        self._listener.listen()
        self._selector.register(self._listener, selectors.EVENT_READ, None)
        self._sockets = [self._listener]
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._pass_on)
        self._thread.start()

    def close(self) -> None:
        self._over.set()
        self._thread.join()
        for each in self._sockets:
            each.close()
        self._selector.close()

    def _pass_on(self) -> None:
        while not self._over.is_set():
            for key, _ in self._selector.select(0.05):
                if key.data is None:
                    self._accept()
                elif key.fd in self._selector.get_map():  # else its other end was closed just before
                    self._move(key.fileobj, key.data)  # type: ignore[arg-type]

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        server = socket.socket(socket.AF_UNIX)
        server.connect(self._server)
        self._sockets += [client, server]
        self._selector.register(client, selectors.EVENT_READ, server)
        self._selector.register(server, selectors.EVENT_READ, client)

    def _move(self, source: socket.socket, target: socket.socket) -> None:
        try:
            given = source.recv(65536)
            if given and not self.silent:
                target.sendall(given)
        except OSError:
            given = b""
        if not given and not self.silent:
            for end in (source, target):
                if end.fileno() in self._selector.get_map():
                    self._selector.unregister(end)
                end.close()
        elif not given:
            self._selector.unregister(source)  # the other end never hears of it
