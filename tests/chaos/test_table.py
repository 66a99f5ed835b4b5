from __future__ import annotations

import subprocess
import sys

from tests.chaos.table import MARK, ProcessTable
from tests.processes import until

_BECOMES_ANOTHER = "import os, sys; sys.stdin.read(1); os.execve(sys.argv[1], sys.argv[1:3], {sys.argv[3]: 'fleet'})"


def test_a_process_is_seen_to_be_the_fleets_once_it_has_become_what_it_was_started_for() -> None:
    table = ProcessTable("fleet")
    command = [sys.executable, "-c", _BECOMES_ANOTHER, "/bin/sleep", "60", MARK]
    process = subprocess.Popen(command, stdin=subprocess.PIPE)
    try:
        assert process.pid not in table.look()
        assert process.stdin is not None
        process.stdin.write(b"x")
        process.stdin.flush()
        until(lambda: process.pid in table.look())
        assert table.look()[process.pid].command == "/bin/sleep 60"
    finally:
        process.kill()
        process.communicate()
