"""What this machine lets us break, found out by trying. What it doesn't is not run, and never counts as passed."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from tests.chaos.namespaces import UNSHARE

#: In the environment of a driver whose mounts nobody else sees.
PRIVATE_MOUNTS = "CHAOS_PRIVATE_MOUNTS"


class Tools:
    """`missing(name)` says why a tool can't be used here; None for one that can."""

    def missing(self, name: str) -> str | None:
        """Raises KeyError for a tool that nobody knows."""
        return self._reasons[name]()

    @property
    def _reasons(self) -> dict[str, Callable[[], str | None]]:
        return {
            "strace": lambda: self._strace,
            "network namespaces": lambda: self._network_namespaces,
            "memory cgroup": lambda: self._memory_cgroup,
            "mounts": lambda: self._mounts,
            "libfaketime": lambda: None if self.faketime else "the wheel libfaketime isn't installed",
            "ss -K": lambda: self._ss,
            "git history": lambda: self._git,
        }

    @cached_property
    def faketime(self) -> Path | None:
        """The library to preload, from the wheel."""
        spec = importlib.util.find_spec("libfaketime")
        if spec is None or spec.origin is None:
            return None
        return next(Path(spec.origin).parent.glob("vendor/**/libfaketime.so.1"), None)

    @cached_property
    def _strace(self) -> str | None:
        if shutil.which("strace") is None:
            return "strace isn't installed"
        tried = _run("strace", "-f", "-o", os.devnull, "-e", "trace=fsync", "-e", "inject=fsync:error=EIO", "true")
        return None if tried else "strace may not trace here"

    @cached_property
    def _network_namespaces(self) -> str | None:
        if shutil.which("unshare") is None or shutil.which("ip") is None:
            return "unshare and ip aren't both installed"
        tried = _run(*UNSHARE, "ip", "link", "add", "chaos0", "type", "veth", "peer", "name", "chaos1")
        return None if tried else f"{' '.join(UNSHARE)} may not make network interfaces here"

    @cached_property
    def _memory_cgroup(self) -> str | None:
        probe = memory_cgroups() and memory_cgroups() / f"chaos-{os.getpid()}"
        try:
            if not probe:
                return "no memory cgroup is mounted"
            probe.mkdir()
            probe.rmdir()
        except OSError as error:
            return f"a memory cgroup can't be made: {error.strerror}"
        return None

    @cached_property
    def _mounts(self) -> str | None:
        if os.geteuid() != 0:
            return "mounting takes root here, since PostgreSQL refuses to run as root of a user namespace"
        tried = _run(
            "unshare", "-m", "--propagation", "private", "mount", "-t", "tmpfs", "-o", "size=1m", "none", "/mnt"
        )
        return None if tried else "a tmpfs may not be mounted here"

    @cached_property
    def _ss(self) -> str | None:
        if shutil.which("ss") is None:
            return "ss isn't installed"
        with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
            _run("ss", "-K", "-t", "dst", f"127.0.0.1:{server.getsockname()[1]}")
            client.setblocking(False)
            try:
                client.recv(1)
            except BlockingIOError:
                return "sockets may not be destroyed here: that takes root, and a kernel that can"
            except ConnectionError:
                return None
            return "a destroyed socket says nothing"

    @cached_property
    def _git(self) -> str | None:
        if shutil.which("git") is None:
            return "git isn't installed"
        return None if _run("git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD") else "this is no git checkout"


def memory_cgroups() -> Path | None:
    """Where a memory cgroup of the driver's own may be made: version 1, or version 2 with the memory controller."""
    first, second = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
    if (first / "memory.limit_in_bytes").exists() or (first / "cgroup.procs").exists():
        return first
    if (second / "cgroup.subtree_control").exists() and "memory" in (second / "cgroup.subtree_control").read_text():
        return second
    return None


def _run(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, timeout=20, check=False).returncode == 0
