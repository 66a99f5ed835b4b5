"""The two ends of a moment: armed here, reached in another process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.chaos.fleet import INJECTED, ROOT
from tests.chaos.moments import Moments
from tests.processes import until

_RENAMES = (
    "import os, sys\n"
    "for name in 'abc':\n"
    "    os.rename(f'{sys.argv[1]}/{name}', f'{sys.argv[1]}/artifacts/models/{name}')\n"
)


@pytest.fixture
def moments(tmp_path: Path) -> Moments:
    (tmp_path / "artifacts" / "models").mkdir(parents=True)
    for name in "abc":
        (tmp_path / name).touch()
    return Moments(tmp_path / "moments")


def start(
    moments: Moments, tmp_path: Path, script: str = _RENAMES, more: Sequence[str] = ()
) -> subprocess.Popen[bytes]:
    env = {
        **os.environ, "PYTHONPATH": str(INJECTED), "CHAOS_FOLDER": str(moments.folder), "CHAOS_PROCESS": "worker-1",
    }  # fmt: skip
    return subprocess.Popen([sys.executable, "-c", script, str(tmp_path), *more], env=env, cwd=ROOT)


def published(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "artifacts" / "models").iterdir())


@pytest.mark.parametrize(("moment", "left"), [("before model rename", ["a"]), ("after model rename", ["a", "b"])])
def test_a_process_is_killed_at_the_nth_time_that_its_moment_comes(
    moments: Moments, tmp_path: Path, moment: str, left: list[str]
) -> None:
    armed = moments.arm(moment, nth=2)
    process = start(moments, tmp_path)

    assert process.wait(60) == -signal.SIGKILL
    assert published(tmp_path) == left
    firing = armed.fired()
    assert firing is not None
    assert firing.pid == process.pid


def test_only_who_is_meant_is_hit(moments: Moments, tmp_path: Path) -> None:
    others = [moments.arm("before model rename", process="worker-2"), moments.arm("before model rename", job="ftjob-1")]

    assert start(moments, tmp_path).wait(60) == 0
    assert [armed.fired() for armed in others] == [None, None]


def test_threads_that_come_to_a_moment_at_once_go_on(moments: Moments, tmp_path: Path) -> None:
    script = (
        "import sys, threading\n"
        "import chaos_moments\n"
        "together, failed = threading.Barrier(30), []\n"
        "threading.excepthook = failed.append\n"
        "def come():\n"
        "    together.wait()\n"
        "    chaos_moments.reached('before model rename')\n"
        "for _ in range(20):\n"
        "    threads = [threading.Thread(target=come) for _ in range(30)]\n"
        "    [thread.start() for thread in threads]\n"
        "    [thread.join() for thread in threads]\n"
        "sys.exit(len(failed))\n"
    )
    armed = [moments.arm("before model rename", "sleep", seconds=0.0) for _ in range(20)]
    assert start(moments, tmp_path, script).wait(60) == 0
    assert all(each.fired() for each in armed)


def test_a_paused_process_waits_until_it_is_released(moments: Moments, tmp_path: Path) -> None:
    armed = moments.arm("before model rename", "pause", nth=3)
    process = start(moments, tmp_path)
    until(armed.fired)
    assert published(tmp_path) == ["a", "b"]
    armed.release()

    assert process.wait(60) == 0
    assert published(tmp_path) == ["a", "b", "c"]


def test_every_moment_and_every_guard_is_found_in_the_product(moments: Moments, tmp_path: Path) -> None:
    modules = (
        "workers.training.trainer", "workers.training.recorder", "psycopg", "storage.queue", "storage.attempts",
        "storage.held_lease", "workers.lease", "storage.artifacts", "storage.manifests", "storage.leases",
    )  # fmt: skip
    script = (
        "import importlib, sys\n"
        "modules = {name: importlib.import_module(name) for name in sys.argv[2:]}\n"
        "recorder = modules['workers.training.recorder']\n"
        "assert recorder._WRITE_EVERY_SECONDS == recorder._RAREST_SECONDS < 0.5\n"
    )
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("CHAOS_GUARDS_OFF", "fencing,durability,state,outbox,clock")
        assert start(moments, tmp_path, script, modules).wait(200) == 0
    assert moments.missing() == {}
