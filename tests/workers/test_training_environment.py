from __future__ import annotations

import os
import subprocess
import sys

import pytest

from workers.training_environment import training_environment

#: Prints how many pages the system had to clear for blocks of 64 MB that are taken and freed, after some of them.
_FREE_AND_TAKE_AGAIN = """
import resource

def take_and_free():
    for _ in range(10):
        b"1" * 64_000_000
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

print(-take_and_free() + take_and_free())
"""


def cleared_pages(environment: dict[str, str]) -> int:
    command = [sys.executable, "-c", _FREE_AND_TAKE_AGAIN]
    return int(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's settings")
def test_memory_that_a_step_frees_is_there_for_the_next_without_being_cleared_anew() -> None:
    others = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    assert cleared_pages({**others, **training_environment()}) < cleared_pages(others) / 10


def test_what_the_environment_says_already_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "123")
    assert training_environment()["MALLOC_TRIM_THRESHOLD_"] == "123"
