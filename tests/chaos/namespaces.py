"""A worker in a network of its own, whose cable to the database can be pulled.

    here           proxy's Unix socket ── PostgreSQL, past everything
    namespace A    a relay, listening on one end of a veth pair; made by `unshare -rn`, or without `-r` by root
    namespace B    the worker; its packets go through the pair, which `ip link set … down` cuts without a word

Valkey and files are reached as from everywhere: Unix sockets and folders belong to no network.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_ADDRESS, _PEER = "10.99.0.1", "10.99.0.2"
_READY_SECONDS = 20.0
#: Run in A: makes B, joins the two, says B's pid, relays, and obeys `down` and `up`.
_HERE = "tests.chaos.namespaces"
#: Into a network of one's own. Root takes no user namespace along: its folder of sockets is PostgreSQL's user's, who
#: would be nobody there.
UNSHARE = ("unshare", "-n" if os.geteuid() == 0 else "-rn")


@dataclass
class Cable:
    """The pair between the two namespaces, and how to run something at its far end."""

    process: subprocess.Popen[str]
    holder: int  # a process in B
    port: int

    @property
    def prefix(self) -> list[str]:
        """Before a command, to run it in B."""
        user = [f"--user=/proc/{self.holder}/ns/user", "--preserve-credentials"] if os.geteuid() else []
        return ["nsenter", *user, f"--net=/proc/{self.holder}/ns/net"]

    @property
    def address(self) -> str:
        return f"{_ADDRESS}:{self.port}"

    def pull(self) -> None:
        """Packets vanish from now on."""
        self._tell("down")

    def plug(self) -> None:
        self._tell("up")

    def _tell(self, order: str) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(order + "\n")
        self.process.stdin.flush()
        self.process.stdout.readline()


@contextmanager
def cable(target: Path, root: Path) -> Iterator[Cable]:
    """Both namespaces, with a relay to a Unix socket. Raises RuntimeError when they don't come up."""
    process = subprocess.Popen(
        [*UNSHARE, sys.executable, "-m", _HERE, str(target)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=root,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        words = process.stdout.readline().split()
        if len(words) != 2:
            raise RuntimeError("the network namespaces did not come up")
        yield Cable(process, int(words[0]), int(words[1]))
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()


# --- in namespace A ---


def main(target: str) -> None:
    """Hold the namespaces until standard input ends."""
    holder = subprocess.Popen(["unshare", "-n", "sleep", "infinity"])
    try:
        _await_namespace(holder.pid)
        _join(holder.pid)
        asyncio.run(_serve(target, holder.pid))
    finally:
        holder.kill()
        holder.wait()


def _await_namespace(pid: int) -> None:
    mine = Path("/proc/self/ns/net").readlink()
    deadline = time.monotonic() + _READY_SECONDS
    while Path(f"/proc/{pid}/ns/net").readlink() == mine and time.monotonic() < deadline:
        time.sleep(0.01)


def _join(holder: int) -> None:
    """One veth pair, one end on each side."""
    inside = ["nsenter", f"--net=/proc/{holder}/ns/net"]
    for command in (
        ["ip", "link", "set", "lo", "up"],
        ["ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1"],
        ["ip", "link", "set", "v1", "netns", str(holder)],
        ["ip", "addr", "add", f"{_ADDRESS}/24", "dev", "v0"],
        ["ip", "link", "set", "v0", "up"],
        [*inside, "ip", "link", "set", "lo", "up"],
        [*inside, "ip", "addr", "add", f"{_PEER}/24", "dev", "v1"],
        [*inside, "ip", "link", "set", "v1", "up"],
    ):
        subprocess.run(command, check=True, capture_output=True)


async def _serve(target: str, holder: int) -> None:
    async def relay(client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        try:
            server, to_server = await asyncio.open_unix_connection(target)
        except OSError:
            to_client.close()
            return
        await asyncio.gather(_copy(client, to_server), _copy(server, to_client))

    listening = await asyncio.start_server(relay, _ADDRESS, 0)
    _say(f"{holder} {listening.sockets[0].getsockname()[1]}")
    while order := (await asyncio.to_thread(sys.stdin.readline)).strip():
        subprocess.run(["ip", "link", "set", "v0", order], check=True)
        _say(order)


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    try:
        while data := await source.read(65536):
            target.write(data)
            await target.drain()
    except OSError:
        pass
    finally:
        target.close()


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1])
