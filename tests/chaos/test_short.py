"""The commonest faults, each at least once; all of them are `make chaos`."""

import signal
import subprocess
import sys
from pathlib import Path

from storage.processes import start_child

# The busier the machine, the more time everything is given.
_PATIENCE_SECONDS = 900


def test_nothing_is_lost_doubled_or_torn_by_the_commonest_faults(tmp_path: Path) -> None:
    output = tmp_path / "output"
    command = [sys.executable, "-m", "tests.chaos", "--short", "--seed", "1", "--report", str(tmp_path)]
    with output.open("wb") as target:
        driver = start_child(command, output=target, on_parent_death=signal.SIGKILL)
    try:
        code = driver.wait(timeout=_PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        driver.kill()
        raise
    assert code == 0, output.read_text()[-10_000:]
