from __future__ import annotations

import signal
from pathlib import Path

import pytest

from workers import oom_kills
from workers.deaths import death_of
from workers.oom_kills import RecentKills, count

V1 = "9:name=systemd:/\n4:cpu,memory:/jobs/one\n0::/\n"
V2 = "0::/jobs/one\n"
IN_CONTROL = "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"
IN_EVENTS = "low 0\nhigh 9\nmax 9\noom 5\noom_kill 4\noom_group_kill 8\n"


def write(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


@pytest.mark.parametrize(
    ("files", "kills"),
    [
        ({"proc/self/cgroup": V1, "sys/fs/cgroup/memory/jobs/one/memory.oom_control": IN_CONTROL}, 3),
        ({"proc/self/cgroup": V1, "sys/fs/cgroup/memory/memory.oom_control": IN_CONTROL}, 3),
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/jobs/one/memory.events": IN_EVENTS}, 4),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.events": IN_EVENTS}, 4),
        ({"proc/self/cgroup": V2, "proc/vmstat": "nr_free_pages 1\noom_kill 5\n"}, 5),
        ({"proc/self/cgroup": V2, "proc/vmstat": "nr_free_pages 1\n"}, None),
        ({}, None),
    ],
)
def test_kills_are_counted_where_the_kernel_tells_them(tmp_path: Path, files: dict[str, str], kills: int) -> None:
    assert count(write(tmp_path, files)) == kills


def test_a_kill_counts_for_a_while_and_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oom_kills, "_LOOK_EVERY_SECONDS", 0.0)
    counts = iter([7, 7, 8, 8, 8, 8, 8])
    monkeypatch.setattr(oom_kills, "count", lambda: next(counts))

    recent = RecentKills()
    assert recent.any() is False
    recent.look()  # somebody was killed just before this look
    assert recent.any() is True
    recent.look()
    assert recent.any() is False


def test_whether_somebody_was_killed_may_be_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oom_kills, "count", lambda: None)

    assert RecentKills().any() is None


def test_what_is_said_of_a_death_is_what_is_known() -> None:
    def told(number: int, out_of_memory: bool | None) -> str:
        return str(death_of("The training process", number, after_step=3, out_of_memory=out_of_memory))

    assert told(signal.SIGSEGV, True) == "The training process was killed by SIGSEGV after step 3"
    assert told(signal.SIGKILL, True) == "The kernel killed the training process for lack of memory after step 3"
    assert "by somebody, not for lack of memory" in told(signal.SIGKILL, False)
    assert "most likely for lack of memory, which can't be told on this machine" in told(signal.SIGKILL, None)
    assert "signal 50" in told(50, False)
    assert str(death_of("It", signal.SIGBUS, after_step=None, out_of_memory=None)).endswith("before a step was taken")
    assert death_of("It", signal.SIGKILL, after_step=3, out_of_memory=True).out_of_memory
    assert [death_of("It", 9, after_step=3, out_of_memory=oom).from_outside for oom in (True, False, None)] == [
        False, True, False
    ]  # fmt: skip
