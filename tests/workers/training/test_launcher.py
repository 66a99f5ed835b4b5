from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from storage.processes import start_child, stop_child
from tests.processes import await_end, until
from workers.training import launcher

#: Every program begins so: `rank`, and a way to tell that it has begun.
BEGIN = """
import json, os, pathlib, signal, sys, time
rank, folder = int(os.environ["RANK"]), pathlib.Path(sys.argv[1])
def tell(value):
    (folder / f"{rank}.new").write_text(json.dumps(value))
    (folder / f"{rank}.new").rename(folder / f"{rank}.json")
"""


@contextmanager
def launched(program: str, folder: Path, *, processes: int = 2) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", launcher.__name__, str(processes), sys.executable, "-c", BEGIN + program, folder]
    process = start_child(command)
    try:
        yield process
    finally:
        stop_child(process, sig=signal.SIGKILL, grace_seconds=10)


def told(folder: Path, rank: int) -> object:
    path = folder / f"{rank}.json"
    until(path.exists)
    return json.loads(path.read_text())


def test_processes_get_what_torchrun_sets_and_rank_0_a_socket_to_listen_on(tmp_path: Path) -> None:
    program = """
import socket
host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
if rank == 0:
    server = socket.socket(fileno=int(os.environ["LIKENESS_LISTENER"]))
    heard = [server.accept()[0].makefile().read() for _ in range(2)]
    tell([sorted(heard), os.environ["OMP_NUM_THREADS"]])
else:
    with socket.create_connection((host, port)) as client:
        client.sendall(f"{rank} of {os.environ['WORLD_SIZE']}, {os.environ['LOCAL_RANK']}".encode())
    time.sleep(60)
"""
    with launched(program, tmp_path, processes=3) as process:
        assert process.wait(60) == 0
    assert told(tmp_path, 0) == [["1 of 3, 1", "2 of 3, 2"], str(max(1, len(os.sched_getaffinity(0)) // 3))]


KILLED = "os.kill(os.getpid(), signal.SIGKILL)"


@pytest.mark.parametrize(
    ("first", "second", "code"),
    [
        pytest.param("sys.exit(75)", "time.sleep(60)", 75, id="rank 0 says how"),
        pytest.param("sys.exit(0)", "time.sleep(60)", 0, id="rank 0 is done"),
        pytest.param(KILLED, "time.sleep(60)", -signal.SIGKILL, id="rank 0 is killed"),
        pytest.param("time.sleep(60)", KILLED, -signal.SIGKILL, id="another is killed"),
        pytest.param("time.sleep(60)", "sys.exit(3)", 1, id="another fails"),
    ],
)
def test_it_ends_as_rank_0_does_or_as_another_that_fails(tmp_path: Path, first: str, second: str, code: int) -> None:
    program = f"tell(os.getpid())\n{first} if rank == 0 else {second}"
    with launched(program, tmp_path) as process:
        assert process.wait(60) == code
    await_end(*(json.loads(path.read_text()) for path in tmp_path.glob("*.json")))


def test_another_rank_may_leave(tmp_path: Path) -> None:
    program = """
if rank == 1:
    tell(os.getpid())
    sys.exit(0)
while not (folder / "1.json").exists() or pathlib.Path("/proc", (folder / "1.json").read_text()).exists():
    time.sleep(0.01)
sys.exit(74)
"""
    with launched(program, tmp_path) as process:
        assert process.wait(60) == 74


def test_a_rank_that_lost_another_is_not_what_is_told() -> None:
    assert launcher._outcome({0: 1, 1: -signal.SIGKILL}) == -signal.SIGKILL
    assert launcher._outcome({0: 1, 1: 1}) == 1
    assert launcher._outcome({0: 76, 1: -signal.SIGKILL}) == 76


def test_sigterm_is_told_to_rank_0_only(tmp_path: Path) -> None:
    program = """
signal.signal(signal.SIGTERM, lambda *_: (tell("told"), sys.exit(75)))
tell("here")
time.sleep(60)
"""
    with launched(program, tmp_path) as process:
        assert [told(tmp_path, rank) for rank in (0, 1)] == ["here", "here"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 75
    assert [told(tmp_path, rank) for rank in (0, 1)] == ["told", "here"]


def test_no_process_outlives_a_launcher_that_is_killed(tmp_path: Path) -> None:
    with launched("tell(os.getpid())\ntime.sleep(60)", tmp_path) as process:
        ranks = [int(str(told(tmp_path, rank))) for rank in (0, 1)]
        process.kill()
        await_end(*ranks)
