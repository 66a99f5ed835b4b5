"""The API as a process of its own, which can be stopped, killed and weighed."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from service.settings import ServiceSettings
from storage import teams
from storage.database import Database
from storage.processes import start_child
from tests.installation import Installation, environment_of
from tests.processes import until


@dataclass(frozen=True)
class ApiProcess:
    """A running process, and the installation that it serves."""

    process: subprocess.Popen[bytes]
    api: Installation

    @property
    def resident_bytes(self) -> int:
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * 4096


@contextmanager
def api_process(settings: ServiceSettings, **environment: Any) -> Iterator[ApiProcess]:
    """A process of the role `api` that is ready; killed on the way out if it still runs."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    env = environment_of(settings) | {"LIKENESS_ROLE": "api", "LIKENESS_PORT": str(port)}
    env |= {f"LIKENESS_{name.upper()}": str(value) for name, value in environment.items()}
    log = settings.data_dir.parent / "api.log"
    with log.open("ab") as output:
        process = start_child([sys.executable, "-m", "service.serve"], env=env, output=output)
    database = Database(settings.required_database_url, pool_size=2)
    try:
        with database.session(teams.DEFAULT_TEAM) as session:
            _, key = teams.create_key(session, "test")
        with ExitStack() as clients:
            api = Installation(f"http://127.0.0.1:{port}", key, settings, database, None, clients)
            until(lambda: process.poll() is not None or _is_ready(api))
            assert process.poll() is None, log.read_text()
            yield ApiProcess(process, api)
    finally:
        process.kill()
        process.wait()
        database.dispose()


def _is_ready(api: Installation) -> bool:
    try:
        return api.request("GET", "/readyz").status_code == 200
    except httpx2.TransportError:
        return False
