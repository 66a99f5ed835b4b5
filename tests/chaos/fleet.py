"""A fleet: every process of an installation, each behind proxies of its own, and whoever dies is started again.

api-1  api-2  inference      worker-1  worker-2  worker-3  cpu-1      reconciler-1  reconciler-2
   │      │                      │         │         │       │              │             │
   └──────┴──────── one proxy each to PostgreSQL, one each to Valkey ───────┴─────────────┘
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from service.up import is_ready
from storage import schema, teams
from storage.database import Database
from storage.processes import start_child
from tests.chaos.moments import Moments
from tests.chaos.proxies import Proxies, Proxy
from tests.chaos.servers import Postgres, Valkey
from tests.chaos.table import MARK, ProcessTable
from tests.chaos.tools import PRIVATE_MOUNTS

Answer = TypeVar("Answer")

ROOT = Path(__file__).resolve().parents[2]
INJECTED = Path(__file__).resolve().parent / "injected"
_START_AGAIN_SECONDS = 1.0
_READY_SECONDS = 300.0
_STOP_SECONDS = 40.0
_DISK_BYTES = 1500 * 2**20
#: What distinguishes the members that serve HTTP, and stays when one is replaced.
_ROLE = ("LIKENESS_ROLE", "LIKENESS_PORT")


@dataclass(frozen=True)
class Shape:
    """What a fleet is made of, and how fast its clocks run."""

    lease_seconds: float = 3.0
    tick_seconds: float = 1.0
    step_seconds: float = 0.05  # a pause before each step, so that a training of 40 steps lasts a while
    workers: int = 3
    apis: int = 2
    reconcilers: int = 2
    inference: bool = True
    guards_off: tuple[str, ...] = ()


@dataclass
class Member:
    """A process to keep alive, unless a fault holds it down."""

    name: str
    command: list[str]
    env: dict[str, str]
    log: Path
    database: Proxy
    queue: Proxy
    prefix: list[str] = field(default_factory=list)  # what it is run under, such as strace
    cwd: Path = ROOT
    process: subprocess.Popen[bytes] | None = None
    held: bool = False
    ended: float = 0.0
    began: float = 0.0  # monotonic

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def runs(self) -> bool:
        return self.process is not None and self.process.poll() is None


class Fleet:
    """Started with `start`, ended with `stop`; in between, faults reach every part of it."""

    def __init__(self, folder: Path, shape: Shape, base_models: Path) -> None:
        self.folder = folder
        self.shape = shape
        self.name = secrets.token_hex(6)
        self.data = folder / "data"
        self.moments = Moments(folder / "moments")
        self.table = ProcessTable(self.name)
        self.proxies = Proxies()
        self.postgres = Postgres(self.data)
        self.valkey = Valkey(self.data)
        self.members: dict[str, Member] = {}
        self.key = ""
        self._base_models = base_models
        # A child dies with the thread that started it: one thread starts them all, and lives to the end.
        self._starter = ThreadPoolExecutor(max_workers=1, thread_name_prefix="starter")
        self._stopping = threading.Event()
        self._supervisor = threading.Thread(target=self._supervise, name="supervisor", daemon=True)

    def start(self) -> None:
        """Start everything, and wait until both APIs are ready. Raises TimeoutError."""
        self.data.mkdir(parents=True)
        if PRIVATE_MOUNTS in os.environ:
            self._mount_small_disk()
        (self.folder / "logs").mkdir()
        self.on_starter(self.postgres.start)
        self.on_starter(self.valkey.start)
        self._prepare_database()
        for name, command, extra in self._plan():
            self.members[name] = self._member(name, command, extra)
            self.start_member(name)
        self._supervisor.start()
        self._await_ready()

    def stop(self) -> None:
        """Stop everything in good order: the workers first, the servers last."""
        self._stopping.set()
        if self._supervisor.is_alive():
            self._supervisor.join()
        for process in self.table.look().values():  # also whom a fault has stopped
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGCONT)
        for member in self.members.values():
            self.signal(member.name, signal.SIGTERM)
        deadline = time.monotonic() + _STOP_SECONDS
        for member in self.members.values():
            self._await_end(member, deadline)
        self.on_starter(self.valkey.stop)
        self.on_starter(self.postgres.stop)
        self.proxies.close()
        self._starter.shutdown()
        self._keep_small_disk()

    def on_starter(self, work: Callable[[], Answer]) -> Answer:
        """Run something that starts a process, on the thread that may."""
        return self._starter.submit(work).result()

    def start_member(self, name: str) -> None:
        """Start a process that isn't running."""
        member = self.members[name]

        def start() -> None:
            if member.runs:
                return
            with member.log.open("ab") as output:
                member.process = start_child(
                    [*member.prefix, *member.command],
                    env=member.env,
                    output=output,
                    cwd=member.cwd,
                    on_parent_death=signal.SIGKILL,  # whatever this driver has done to it
                )
            member.began = time.monotonic()

        self.on_starter(start)

    def signal(self, name: str, sig: signal.Signals) -> None:
        """Send a signal to a member alone; fine if it is gone."""
        member = self.members[name]
        if member.runs:
            with suppress(ProcessLookupError):  # collected by another thread this moment
                os.kill(member.pid, sig)

    def hold(self, name: str) -> None:
        """Don't start it again when it dies, until `let_go`."""
        self.members[name].held = True

    def let_go(self, name: str) -> None:
        self.members[name].held = False

    def replace(self, name: str, *, prefix: list[str] | None = None, env: Mapping[str, str] | None = None,
                cwd: Path = ROOT) -> None:  # fmt: skip
        """End a member politely and start it anew, under something else or with more in its environment."""
        member = self.members[name]
        self.hold(name)
        self.signal(name, signal.SIGTERM)
        self._await_end(member, time.monotonic() + _STOP_SECONDS)
        member.prefix = prefix or []
        member.cwd = cwd
        role = {key: value for key, value in member.env.items() if key in _ROLE}
        member.env = {**self._environment(name, member.database, member.queue), **role, **(env or {})}
        self.start_member(name)
        self.let_go(name)

    def urls(self) -> list[str]:
        """Where the APIs answer."""
        return [self.url_of(name) for name in self.members if name.startswith("api-")]

    def url_of(self, name: str) -> str:
        return f"http://127.0.0.1:{self.members[name].env['LIKENESS_PORT']}"

    def named(self, prefix: str) -> list[str]:
        """Names of the members of a kind: api, worker, cpu, reconciler."""
        return [name for name in self.members if name.startswith(f"{prefix}-")]

    def worker_of(self, pid: int) -> str | None:
        """Which member a process descends from."""
        table = self.table.look()
        pids = {member.pid: name for name, member in self.members.items() if member.process is not None}
        while pid in table:
            if pid in pids:
                return pids[pid]
            pid = table[pid].parent
        return None

    def _plan(self) -> list[tuple[str, list[str], dict[str, str]]]:
        python = [sys.executable, "-m"]
        shape = self.shape
        plan: list[tuple[str, list[str], dict[str, str]]] = []
        plan += [(f"api-{n}", [*python, "service.serve"], {"LIKENESS_ROLE": "api"}) for n in _numbers(shape.apis)]
        if shape.inference:
            plan += [("inference-1", [*python, "service.serve"], {"LIKENESS_ROLE": "inference"})]
        plan += [(f"worker-{n}", [*python, "workers.worker", "gpu"], {}) for n in _numbers(shape.workers)]
        plan += [("cpu-1", [*python, "workers.worker", "cpu"], {})]
        plan += [(f"reconciler-{n}", [*python, "workers.reconciler"], {}) for n in _numbers(shape.reconcilers)]
        return plan

    def _member(self, name: str, command: list[str], extra: dict[str, str]) -> Member:
        database = self.proxies.open(f"{name} to PostgreSQL", self.postgres.socket)
        queue = self.proxies.open(f"{name} to Valkey", self.valkey.socket)
        if "LIKENESS_ROLE" in extra:
            extra = {**extra, "LIKENESS_PORT": str(_free_port())}
        member = Member(name, command, {}, self.folder / "logs" / f"{name}.log", database, queue)
        member.env = {**self._environment(name, database, queue), **extra}
        return member

    def _environment(self, name: str, database: Proxy, queue: Proxy) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("LIKENESS_")}
        return kept | {
            "DATABASE_URL": f"postgresql://postgres@127.0.0.1:{database.port}/postgres",
            "REDIS_URL": f"redis://127.0.0.1:{queue.port}/0",
            "LIKENESS_DATA_DIR": str(self.data),
            "LIKENESS_BASE_MODELS_DIR": str(self._base_models),
            "LIKENESS_LEASE_SECONDS": str(self.shape.lease_seconds),
            "LIKENESS_TICK_SECONDS": str(self.shape.tick_seconds),
            "LIKENESS_DRAIN_SECONDS": "5",
            # One thread each: rounding is then the same in every attempt, and three workers share few cores.
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": f"{INJECTED}",
            "CHAOS_FOLDER": str(self.moments.folder),
            "CHAOS_PROCESS": name,
            "CHAOS_STEP_SECONDS": str(self.shape.step_seconds),
            "CHAOS_GUARDS_OFF": ",".join(self.shape.guards_off),
            MARK: self.name,
        }  # fmt: skip

    def _mount_small_disk(self) -> None:
        """A disk for artifacts that can be filled up; everything else has the machine's."""
        artifacts = self.data / "artifacts"
        artifacts.mkdir()
        size = f"size={_DISK_BYTES}"
        subprocess.run(["mount", "-t", "tmpfs", "-o", size, "none", str(artifacts)], check=True, capture_output=True)

    def _keep_small_disk(self) -> None:
        """Copy what is on the small disk to the machine's, which is there when this process is not."""
        artifacts = self.data / "artifacts"
        if artifacts.is_mount():
            shutil.copytree(artifacts, self.data / "kept", symlinks=True)
            subprocess.run(["umount", "--lazy", str(artifacts)], check=True, capture_output=True)
            artifacts.rmdir()
            (self.data / "kept").rename(artifacts)

    def _prepare_database(self) -> None:
        database = Database(self.postgres.url, pool_size=1)
        try:
            schema.migrate(database)
            with database.session(teams.DEFAULT_TEAM) as session:
                _, self.key = teams.create_key(session, "chaos")
        finally:
            database.dispose()
        self.postgres.make_judge()

    def _supervise(self) -> None:
        """Start again whoever has been dead for a moment, as an orchestrator does."""
        while not self._stopping.wait(0.1):
            for member in self.members.values():
                if member.runs:
                    member.ended = 0.0
                elif not member.ended:
                    member.ended = time.monotonic()
                elif not member.held and time.monotonic() - member.ended > _START_AGAIN_SECONDS:
                    self.start_member(member.name)

    def _await_ready(self) -> None:
        deadline = time.monotonic() + _READY_SECONDS
        waiting = [self.url_of(name) for name in self.members if "LIKENESS_ROLE" in self.members[name].env]
        while waiting := [url for url in waiting if not is_ready(url)]:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{waiting} did not get ready; the logs are in {self.folder / 'logs'}")
            time.sleep(0.2)

    def _await_end(self, member: Member, deadline: float) -> None:
        if member.process is None:
            return
        try:
            member.process.wait(timeout=max(deadline - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            member.process.kill()
            member.process.wait()


def _numbers(count: int) -> range:
    return range(1, count + 1)


def _free_port() -> int:
    """Outside of the range in which the system gives whoever asks for any: a proxy opened next would get it."""
    while True:
        port = secrets.SystemRandom().randrange(20_000, 30_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
