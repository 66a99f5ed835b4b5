from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from workers import idle_cores
from workers.idle_cores import are_idle, idle_share, wait_policy

BEFORE = """cpu  400 0 100 3000 0 0 0 0 0 0
cpu0 100 0 50 1000 10 0 0 0 0 0
cpu1 300 0 50 2000 0 0 0 5 0 0
cpu10 0 0 0 0 0 0 0 0 0 0
intr 12 34
"""
AFTER = """cpu  490 0 100 3110 0 0 0 0 0 0
cpu0 105 0 50 1090 15 0 0 0 0 0
cpu1 385 0 50 2010 0 0 0 10 0 0
cpu10 0 0 0 100 0 0 0 0 0 0
intr 12 34
"""


@pytest.mark.parametrize(("cores", "share"), [({0}, 0.95), ({1}, 0.1), ({0, 1}, 0.525), ({10}, 1.0), ({7}, 0.0)])
def test_of_the_cores_that_may_be_used_the_idle_time_is_told(cores: set[int], share: float) -> None:
    assert idle_share(BEFORE, AFTER, cores) == pytest.approx(share)


@pytest.fixture
def busy_cores() -> Iterator[None]:
    command = [sys.executable, "-c", "print(flush=True)\nwhile True: pass"]
    with ExitStack() as running:
        for _ in os.sched_getaffinity(0):
            process = running.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE))
            running.callback(process.kill)
            assert process.stdout is not None
            process.stdout.readline()
        yield


@pytest.mark.usefixtures("busy_cores")
def test_beside_other_programs_threads_sleep_unless_somebody_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not are_idle(0.05)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert wait_policy() == {"OMP_WAIT_POLICY": "PASSIVE"}
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert wait_policy() == {}


def test_where_nobody_tells_threads_sleep(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(idle_cores, "_STAT", tmp_path / "stat")
    assert not are_idle(0.0)
