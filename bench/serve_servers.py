"""The servers that are measured, each in a process of its own: Likeness, and infinity in an environment of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from encoders.registry import locate
from storage import schema, teams
from storage.database import Database
from storage.embedded import embedded_servers

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
PEER_VENV = Path("build/infinity")
#: What its documentation names for a CPU, and what its newest version needs to start beside today's transformers.
PEER_FLAGS = ["--engine", "torch", "--no-bettertransformer", "--device", "cpu"]
_READY_SECONDS = 180.0


@dataclass(frozen=True)
class Server:
    """A server that answers."""

    name: str
    port: int
    path: str
    key: str
    model: str
    pid: int

    @property
    def resident_bytes(self) -> int:
        """Its memory now."""
        lines = dict(line.split(":", 1) for line in Path(f"/proc/{self.pid}/status").read_text().splitlines())
        return int(lines["VmRSS"].split()[0]) * 1024

    def get(self, path: str) -> str:
        """A page of it."""
        asked = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", headers={"Authorization": f"Bearer {self.key}"}
        )
        with urllib.request.urlopen(asked, timeout=30) as answer:
            return str(answer.read().decode())


@contextmanager
def likeness(folder: Path, **settings: str) -> Iterator[Server]:
    """`likeness serve` with both roles, on servers of its own; settings are those of the environment."""
    with embedded_servers(folder / "servers") as (postgres, valkey):
        database = Database(postgres.url)
        schema.migrate(database)
        with database.session(teams.DEFAULT_TEAM) as session:
            _, key = teams.create_key(session, "bench")
        database.dispose()
        port = _free_port()
        environment = {
            "DATABASE_URL": postgres.url,
            "REDIS_URL": valkey.url,
            "LIKENESS_DATA_DIR": str(folder / "data"),
            "LIKENESS_PORT": str(port),
            "LIKENESS_LOG_LEVEL": "WARNING",
            **settings,
        }
        with _running([sys.executable, "-m", "service.serve"], environment, port, "/readyz") as pid:
            yield Server("Likeness", port, "/v1/embeddings", key, MODEL, pid)


@contextmanager
def infinity() -> Iterator[Server]:
    """infinity's server. Raises FileNotFoundError when it isn't installed."""
    program = PEER_VENV / "bin" / "infinity_emb"
    if not program.exists():
        raise FileNotFoundError(f"{program} is missing: `make bench-serve` installs it.")
    port = _free_port()
    command = [str(program), "v2", "--model-id", str(locate(MODEL, None)), "--served-model-name", MODEL]
    command += [*PEER_FLAGS, "--port", str(port), "--log-level", "warning"]
    with _running(command, {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}, port, "/health") as pid:
        yield Server("infinity", port, "/embeddings", "", MODEL, pid)


@contextmanager
def _running(command: list[str], environment: Mapping[str, str], port: int, ready: str) -> Iterator[int]:
    process = subprocess.Popen(command, env={**os.environ, **environment}, stdout=subprocess.DEVNULL)
    try:
        _await_ready(process, f"http://127.0.0.1:{port}{ready}")
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _await_ready(process: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise TimeoutError(f"{url} did not get ready")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
