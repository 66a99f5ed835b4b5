from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.proxies import BOTH, Proxies, Proxy, Weather
from tests.processes import until

_SECONDS = 20.0
_COMMIT = b"Q\x00\x00\x00\x0bCOMMIT\x00"


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Proxy]:
    """In front of a server that says everything back."""
    path = tmp_path / "echo"
    proxies = Proxies()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        threading.Thread(target=_echo_all, args=[listener], daemon=True).start()
        yield proxies.open("echo", path)
        proxies.close()


def _echo_all(listener: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=_echo, args=[connection], daemon=True).start()


def _echo(connection: socket.socket) -> None:
    with connection, contextlib.suppress(OSError):
        while data := connection.recv(65536):
            connection.sendall(data)


def connect(proxy: Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=_SECONDS)


def is_ended(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_in_fair_weather_bytes_pass_both_ways(proxy: Proxy) -> None:
    with connect(proxy) as client:
        client.sendall(b"hello")
        assert client.recv(5) == b"hello"
    assert not proxy.effects.any


@pytest.mark.parametrize("directions", [BOTH, frozenset({"up"}), frozenset({"down"})])
def test_silence_says_nothing_and_what_was_on_its_way_arrives_after_it(proxy: Proxy, directions: frozenset) -> None:
    with connect(proxy) as client:
        proxy.set(Weather(silent=directions))
        client.sendall(b"later")  # which the kernel acknowledges
        client.settimeout(0.2)
        with pytest.raises(TimeoutError):
            client.recv(5)
        client.settimeout(_SECONDS)
        proxy.set(Weather())
        assert client.recv(5) == b"later"


def test_the_answer_to_a_commit_is_lost_and_its_link_with_it(proxy: Proxy) -> None:
    with connect(proxy) as client:
        proxy.set(Weather(swallow_commits=2))
        client.sendall(_COMMIT)
        assert client.recv(100) == _COMMIT
        client.sendall(_COMMIT)
        assert is_ended(client)
    assert proxy.effects.swallowed_commits == 1


def test_links_are_cut_after_some_bytes_refused_and_reset(proxy: Proxy) -> None:
    proxy.set(Weather(cut_after_bytes=3))
    with connect(proxy) as client:
        client.sendall(b"hello")
        assert client.recv(5) in (b"", b"hel")
    proxy.set(Weather(refusing=True))
    with connect(proxy) as client:
        assert is_ended(client)
    assert proxy.effects.refused_links == 1
    proxy.set(Weather())
    with connect(proxy) as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        assert proxy.reset_links() == 1
        assert is_ended(client)


def test_a_link_knows_the_process_that_postgresql_serves_it_with(proxy: Proxy) -> None:
    with connect(proxy) as client:
        client.sendall(b"K\x00\x00\x00\x0c" + (4711).to_bytes(4, "big") + b"key!")
        until(lambda: proxy.backends() == {4711})


def test_weather_ends_with_its_block_however_that_ends(proxy: Proxy) -> None:
    with contextlib.suppress(LookupError), proxy.under(Weather(refusing=True)):
        assert proxy.weather.refusing
        raise LookupError
    assert proxy.weather == Weather()
