"""Each block is in a process of its own: the hard stop ends the process."""

from __future__ import annotations

import subprocess
import sys

import pytest

from workers import exit_codes

# Work that listens to nobody, until there is a reason to end it, and what it is told when it is given back.
PROGRAM = """
import os, signal, sys, time
from sqlalchemy.exc import OperationalError
from workers import attendance
from workers.stopping import hearing_signals

case, stop_seconds = sys.argv[1], float(sys.argv[2])
attendance._SECONDS_AFTER_END = 0.2

def give_back():
    print("given back", flush=True)
    if case == "away":
        raise OperationalError("", {}, Exception())

def is_over():
    if case == "away":
        raise OperationalError("", {}, Exception())
    return case == "over"

with hearing_signals() as stop, attendance.attended(
    stop, stop_seconds=stop_seconds, is_over=is_over, give_back=give_back
):
    signals = {"soon": signal.SIGTERM, "away": signal.SIGTERM, "at once": signal.SIGUSR1}
    if case in signals:
        os.kill(os.getpid(), signals[case])
    if case != "done":
        time.sleep(600)
print("done", flush=True)
"""


def run(case: str, *, stop_seconds: float) -> tuple[int, str]:
    command = [sys.executable, "-c", PROGRAM, case, str(stop_seconds)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    return done.returncode, done.stdout.splitlines()[-1]  # those before are the log


@pytest.mark.parametrize(("case", "stop_seconds"), [("soon", 0.2), ("at once", 3600), ("over", 3600), ("away", 0.2)])
def test_work_that_goes_on_although_it_is_to_end_is_given_back_and_ended(case: str, stop_seconds: float) -> None:
    assert run(case, stop_seconds=stop_seconds) == (exit_codes.INTERRUPTED, "given back")


def test_work_that_ends_by_itself_is_let() -> None:
    assert run("done", stop_seconds=0) == (0, "done")
