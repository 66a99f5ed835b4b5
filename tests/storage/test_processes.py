from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from storage.processes import is_alive, start_child, stop_child, wait_for_end
from tests.processes import await_end, runs

WAITS = [sys.executable, "-c", "import time; time.sleep(600)"]
# A parent that starts a child, tells its pid and waits. The child ignores nothing.
PARENT = """
import sys, time
from storage.processes import start_child
print(start_child([sys.executable, "-c", "import time; time.sleep(600)"]).pid, flush=True)
time.sleep(600)
"""


def test_a_child_ends_when_its_parent_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert runs(child)
        parent.kill()

    await_end(child)


def test_a_child_ends_on_the_signal_it_is_asked_with() -> None:
    child = start_child(WAITS)

    assert stop_child(child, sig=signal.SIGTERM, grace_seconds=30) == -signal.SIGTERM


def test_a_child_that_will_not_end_is_killed(tmp_path: Path) -> None:
    with (tmp_path / "output").open("w+b") as output:
        deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
        child = start_child([sys.executable, "-c", deaf], output=output)
        while not (tmp_path / "output").read_bytes():
            assert child.poll() is None

        assert stop_child(child, sig=signal.SIGTERM, grace_seconds=0.1) == -signal.SIGKILL


def test_stopping_a_child_that_has_ended_tells_how_it_did() -> None:
    child = start_child([sys.executable, "-c", "raise SystemExit(7)"])
    child.wait()

    assert stop_child(child, sig=signal.SIGTERM, grace_seconds=30) == 7


@pytest.mark.parametrize("sandboxed", [False, True])
def test_waiting_for_an_end_tells_it_or_that_it_has_not_come(sandboxed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if sandboxed:
        monkeypatch.delattr("os.pidfd_open", raising=False)
    child = start_child(WAITS)
    assert wait_for_end(child, 0.05) is None
    child.kill()
    assert wait_for_end(child, 30) == -signal.SIGKILL
    assert wait_for_end(child, 30) == -signal.SIGKILL


def test_output_and_errors_go_to_one_file(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w+b") as output:
        program = "import os; os.write(1, b'out\\n'); os.write(2, b'err\\n')"
        assert start_child([sys.executable, "-c", program], output=output).wait() == 0

    assert (tmp_path / "log").read_text() == "out\nerr\n"


@pytest.mark.parametrize("new_group", [True, False])
def test_a_child_has_a_process_group_of_its_own_unless_told_otherwise(tmp_path: Path, new_group: bool) -> None:
    with (tmp_path / "group").open("w+b") as output:
        program = "import os; print(os.getpgrp() == os.getpid())"
        start_child([sys.executable, "-c", program], output=output, new_group=new_group).wait()

    assert (tmp_path / "group").read_text().strip() == str(new_group)


def test_a_process_is_alive_until_it_has_been_collected() -> None:
    child = start_child(WAITS)
    assert is_alive(child.pid)

    stop_child(child, sig=signal.SIGKILL, grace_seconds=30)

    assert not is_alive(child.pid)
